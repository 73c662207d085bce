"""References as clients send them: checked, and made into pictures that the engine can trust.

The engine gets PNG files that were written here, from pixels that were read here: no decoder but that of the service
process sees a client's bytes, and nothing of their metadata goes any further.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storyloom.v1 import story_pb2 as pb
from storyloom_model.identity.features import Reference, Role
from storyloom_server.pictures import PictureLimits, read_picture
from storyloom_server.safety import Safety
from storyloom_server.violations import Findings

MAX_REFERENCES = 8
# Encoders look at a few hundred pixels of a side; more would only be sent and scaled for nothing.
_LONGEST_SIDE = 2048
_ROLES: dict[int, Role] = {
    pb.REFERENCE_ROLE_UNSPECIFIED: "character",
    pb.REFERENCE_ROLE_CHARACTER: "character",
    pb.REFERENCE_ROLE_CLOTHES: "clothes",
}


@dataclass(frozen=True, slots=True)
class AskedReference:
    """A reference of a request, and the path of its field there."""

    path: str
    reference: pb.Reference


def asked_references(path: str, references: Sequence[pb.Reference]) -> list[AskedReference]:
    """The references of one repeated field, by the field's path."""
    return [AskedReference(f"{path}[{index}]", reference) for index, reference in enumerate(references)]


def digest(asked: Sequence[AskedReference]) -> str:
    """The same for the same pictures, masks and roles in the same order, whichever request brings them."""
    hasher = hashlib.sha256()
    for each in asked:
        for part in (_role(each.reference).encode(), each.reference.picture, each.reference.mask):
            hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.hexdigest()


def read_references(
    found: Findings, asked: Sequence[AskedReference], limits: PictureLimits, safety: Safety
) -> list[Reference]:
    """Checks references and makes them ready for the engine; the result counts only when nothing was found.

    It may take seconds; call it off the event loop, for few references at a time.

    Raises:
        StoryError: a safety check broke down.
    """
    read = [_read(found, each, limits, safety) for each in asked]
    return [reference for reference in read if reference is not None]


def _read(found: Findings, asked: AskedReference, limits: PictureLimits, safety: Safety) -> Reference | None:
    path, reference = asked.path, asked.reference
    if reference.role not in _ROLES:
        found.add(f"{path}.role", f"role {int(reference.role)} is unknown; use CHARACTER or CLOTHES")
    picture = read_picture(found, path, reference.picture, limits)
    if picture is None:
        return None
    if safety.on and not (decision := safety.check_picture(picture, path, story_id="")).allowed:
        found.add(path, f"is refused here ({', '.join(decision.flags)}); send another picture")
        return None
    mask = _read_mask(found, f"{path}.mask", reference.mask, picture, limits) if reference.mask else None
    return Reference(_png(picture), None if mask is None else _png(mask), _role(reference))


def _read_mask(
    found: Findings, path: str, data: bytes, picture: NDArray[np.uint8], limits: PictureLimits
) -> NDArray[np.uint8] | None:
    mask = read_picture(found, path, data, limits)
    if mask is None:
        return None
    if mask.shape != picture.shape:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} pixels and its picture {picture.shape[1]}x{picture.shape[0]}"
        found.add(path, f"has {sizes}; make it the size of the picture")
        return None
    if mask.max() < 128:
        found.add(path, "is black all over, and so shows no character; make it white where the character is")
        return None
    return mask[..., 0]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    # It only goes to the next process.
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _role(reference: pb.Reference) -> Role:
    return _ROLES.get(reference.role, "character")
