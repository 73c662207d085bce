"""Reference pictures of characters: read from files, checked before they are sent. No torch and no numpy here."""

from __future__ import annotations

import enum
import io
import os
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

_FORMATS = ("PNG", "JPEG", "WEBP")


class Role(enum.StrEnum):
    """What of a reference counts: the person, face and all, or only the garments."""

    CHARACTER = "character"
    CLOTHES = "clothes"


class Keep(enum.StrEnum):
    """A part of a character's looks that is taken over from references."""

    FACE = "face"
    HAIR = "hair"
    CLOTHES = "clothes"
    BODY = "body"


def _read(value: Any, info: ValidationInfo) -> bytes:
    data = _data(value, info)
    if not data:
        raise _fault("is empty; a story that a server tells of is without its pictures, so give the picture again")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS):
            return data
    except Image.DecompressionBombError as error:
        raise _fault("has far too many pixels; make it smaller") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        name = f"{value} " if isinstance(value, str | os.PathLike) else ""
        raise _fault(f"{name}is not a PNG, JPEG or WebP picture") from error


def _data(value: Any, info: ValidationInfo) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.save(file, format="PNG")
        return file.getvalue()
    if not isinstance(value, str | os.PathLike):
        raise _fault("should be the path of a picture")
    # Paths in a story file are relative to the file.
    path = Path((info.context or {}).get("folder", ""), os.fspath(value))
    try:
        return path.read_bytes()
    except OSError as error:
        raise _fault(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name
        raise _fault(f"{value!r} is no path of a picture") from error


def _fault(problem: str) -> PydanticCustomError:
    return PydanticCustomError("picture", "{problem}", {"problem": problem})


PictureFile = Annotated[bytes, BeforeValidator(_read)]
"""Contents of a picture's file, given as such, as a path, or as a Pillow image."""


class Reference(BaseModel):
    """A picture of a character: a path, the contents of a file, or a Pillow image. It stands for itself where there is
    neither mask nor role: ``Character(description="a girl", references=["mia.png"])``.

    :ivar picture: contents of a PNG, JPEG or WebP file; empty in what a server tells of a story.
    :ivar mask: a picture of the same size, white where the character is; None: the server finds the character.
    :ivar role: CLOTHES: only the garments in the picture count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    picture: PictureFile = Field(repr=False)
    mask: PictureFile | None = Field(default=None, repr=False)
    role: Role = Role.CHARACTER

    @property
    def is_plain(self) -> bool:
        """A picture, and nothing said of it."""
        return self.mask is None and self.role is Role.CHARACTER

    @model_validator(mode="before")
    @classmethod
    def _from_picture(cls, value: Any) -> Any:
        return value if isinstance(value, dict | Reference) else {"picture": value}


ReferenceLike = Reference | str | os.PathLike[str] | bytes | Image.Image
"""What does for a reference."""


class Blend(BaseModel):
    """Another character whose looks are mixed in.

    :ivar id: of a character that the server keeps, with references.
    :ivar weight: from 0 (this character) to 1 (the other one).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
