"""What is known of a character from pictures of it, as plain arrays and as bytes. Loads without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Array: TypeAlias = NDArray[Any]
Role = Literal["character", "clothes"]

FORMAT = "1"
_METADATA = "features"


class FeaturesError(ValueError):
    """Bytes are not features, or not of these encoders. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture of a character, as the user gave it.

    ``picture`` is an image file. ``mask`` is one too, of the same size, white where the character is; None leaves
    finding it to the segmenter. With the role "clothes" only what the picture shows of garments counts.
    """

    picture: bytes
    mask: bytes | None = None
    role: Role = "character"


@dataclass(frozen=True, slots=True, eq=False)
class PartFeatures:
    """What the image encoder says of the crop of one part of a character; as of ``ReferenceFeatures``."""

    states: Array
    embedding: Array


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceFeatures:
    """What the encoders say of one reference; None: the picture does not show it. Arrays are float16 or float32, but
    for ``portrait``.

    ``face`` is the recogniser's embedding, [512] of length 1. The others are of the image encoder: ``*_states`` its
    penultimate hidden states [tokens, width], ``*_embedding`` its projected embedding [projection], once of the face
    crop (aligned by five landmarks) and once of the character crop (cut out by its mask, background white).
    ``landmarks`` [5, 2] are where the face's eyes, nose and corners of the mouth are, in pixels, x first, in a picture
    of ``size`` [2], width and height; features of earlier versions have neither.
    ``portrait`` is the head as it is in the picture, uint8 RGB [side, side, 3], for adapters that bring an image
    encoder of their own; it is kept where a package has such. ``parts`` are by name (``parts.PARTS``), those that the
    picture shows, for adapters that take over parts; likewise.
    """

    role: Role = "character"
    face: Array | None = None
    face_states: Array | None = None
    face_embedding: Array | None = None
    character_states: Array | None = None
    character_embedding: Array | None = None
    landmarks: Array | None = None
    size: Array | None = None
    portrait: Array | None = None
    parts: Mapping[str, PartFeatures] = field(default_factory=dict)


_ARRAYS = tuple(one.name for one in fields(ReferenceFeatures) if one.name not in ("role", "parts"))


@dataclass(frozen=True, slots=True, eq=False)
class IdentityFeatures:
    """Features of all references of one character.

    ``encoders`` is the fingerprint of what made them; its part before a colon is that of the networks whose numbers
    they are, the rest of what found and cut out the character.
    """

    encoders: str
    references: tuple[ReferenceFeatures, ...]

    @property
    def networks(self) -> str:
        """The fingerprint of recogniser and image encoder, which adapters are trained on."""
        return self.encoders.partition(":")[0]

    def to_bytes(self) -> bytes:
        """Safetensors; the same features give the same bytes."""
        arrays: dict[str, Array] = {}
        for index, reference in enumerate(self.references):
            values = {name: getattr(reference, name) for name in _ARRAYS}
            arrays |= {f"{index}.{name}": np.ascontiguousarray(v) for name, v in values.items() if v is not None}
            for part, seen in reference.parts.items():
                arrays[f"{index}.parts.{part}.states"] = np.ascontiguousarray(seen.states)
                arrays[f"{index}.parts.{part}.embedding"] = np.ascontiguousarray(seen.embedding)
        roles = [reference.role for reference in self.references]
        # One entry: safetensors writes several in any order.
        return save(arrays, {_METADATA: json.dumps({"format": FORMAT, "encoders": self.encoders, "roles": roles})})

    @classmethod
    def from_bytes(cls, data: bytes) -> IdentityFeatures:
        """The inverse of ``to_bytes``.

        Raises:
            FeaturesError: the data are damaged or of another format.
        """
        metadata, arrays = _read(data)
        if metadata.get("format") != FORMAT:
            raise FeaturesError(f"the features have format {metadata.get('format')}; encode the references again")
        roles: Sequence[Role] = metadata["roles"]
        references = tuple(
            ReferenceFeatures(
                role, **{name: arrays.get(f"{index}.{name}") for name in _ARRAYS}, parts=_parts(index, arrays)
            )
            for index, role in enumerate(roles)
        )
        return cls(metadata["encoders"], references)


def _parts(index: int, arrays: Mapping[str, Array]) -> dict[str, PartFeatures]:
    prefix, suffix = f"{index}.parts.", ".states"
    names = [key[len(prefix) : -len(suffix)] for key in arrays if key.startswith(prefix) and key.endswith(suffix)]
    try:
        return {
            name: PartFeatures(arrays[f"{prefix}{name}.states"], arrays[f"{prefix}{name}.embedding"])
            for name in sorted(names)
        }
    except KeyError as error:
        raise FeaturesError(f"the features are damaged (no {error.args[0]}); encode the references again") from error


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA])
        return metadata, load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise FeaturesError(f"the features are damaged ({error}); encode the references again") from error
