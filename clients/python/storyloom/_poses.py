"""Poses of frames: pictures that a model's ControlNets are shown. No torch and no numpy here."""

from __future__ import annotations

import enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from storyloom._references import PictureFile


class ControlKind(enum.StrEnum):
    """What a ControlNet is shown: a pose as it has learnt them, such as a drawn skeleton, or a picture with faces."""

    POSE = "pose"
    IDENTITYNET = "identitynet"


class Pose(BaseModel):
    """A picture that a frame is to follow: a path, the contents of a file, or a Pillow image. It stands for itself
    where nothing else is said: ``Frame(prompt="{mia} waves", pose="waving.png")``.

    :ivar picture: contents of a PNG, JPEG or WebP file; empty in what a server tells of a story. It is scaled to the
        frame's size, and its proportions are not kept.
    :ivar strength: how much it counts, 0 (not at all) to 2.
    :ivar controlnet: name of one of the model's ControlNets; empty: its first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    picture: PictureFile = Field(repr=False)
    strength: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    controlnet: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_picture(cls, value: Any) -> Any:
        return value if isinstance(value, dict | Pose) else {"picture": value}
