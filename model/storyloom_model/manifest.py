"""The schema of ``storyloom.yaml``, the file that makes a folder of diffusers components a model package."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NO_ADAPTER = "none"
"""Accepted wherever an adapter is named: the base weights. The empty name means the same."""

SolverName = Literal["ddim", "euler", "unipc"]
Pixels = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]
AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Defaults(_Part):
    """Values used where a request sets none. ``adapter`` is "none" or the name of an adapter."""

    steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=1, le=30)
    solver: SolverName = "ddim"
    width: Pixels
    height: Pixels
    adapter: str = NO_ADAPTER


class Limits(_Part):
    """What one story may ask for. ``max_prompt_tokens`` counts the start and end tokens.

    Of a story of over ``window_frames`` frames that many are made together; each window but the first has
    ``window_anchors`` finished frames in it, which lend their looks.
    """

    max_frames: int = Field(default=240, ge=1)
    window_frames: int = Field(default=8, ge=2)
    window_anchors: int = Field(default=2, ge=1)
    max_characters: int = Field(default=3, ge=1)
    max_steps: int = Field(default=100, ge=1)
    max_prompt_tokens: int = Field(default=77, ge=3)


class Attention(_Part):
    """The rule that turns maps into foregrounds. ``value``: the quantile, or the threshold of the fixed rule, in [0,
    1].
    """

    threshold: Literal["otsu", "quantile", "fixed"] = "otsu"
    value: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _value_fits_rule(self) -> Self:
        if (self.value is None) != (self.threshold == "otsu"):
            need = "takes no value; remove it" if self.threshold == "otsu" else "needs a value between 0 and 1"
            raise ValueError(f"threshold {self.threshold} {need}")
        return self


class Manifest(_Part):
    """``storyloom.yaml``, format 1. ``sizes`` are (width, height) in pixels; ``adapters`` are files of the package."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    description: str = ""
    method: Literal["storynizor"] = "storynizor"
    sizes: tuple[tuple[Pixels, Pixels], ...] = Field(min_length=1)
    defaults: Defaults
    limits: Limits = Limits()
    attention: Attention = Attention()
    adapters: dict[AdapterName, str] = Field(default_factory=dict)

    @field_validator("adapters")
    @classmethod
    def _files_inside_package(cls, adapters: dict[str, str]) -> dict[str, str]:
        for name, file in adapters.items():
            path = PurePosixPath(file)
            if name == NO_ADAPTER:
                raise ValueError(
                    f"an adapter cannot be called {NO_ADAPTER}, which stands for the base weights; rename it"
                )
            if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
                raise ValueError(f"adapter {name}: {file} must be a .safetensors file inside the package")
        return adapters

    @model_validator(mode="after")
    def _windows_have_room(self) -> Self:
        if self.limits.window_anchors >= self.limits.window_frames:
            raise ValueError("limits: window_anchors must be below window_frames, or a window makes no frame")
        return self

    @model_validator(mode="after")
    def _defaults_are_served(self) -> Self:
        if (self.defaults.width, self.defaults.height) not in self.sizes:
            raise ValueError("defaults: width and height must be one of sizes")
        if self.defaults.steps > self.limits.max_steps:
            raise ValueError("defaults: steps must not exceed limits.max_steps")
        if self.adapter_key(self.defaults.adapter) not in (None, *self.adapters):
            raise ValueError(f"defaults: adapter {self.defaults.adapter} is not listed under adapters")
        return self

    @staticmethod
    def adapter_key(name: str | None) -> str | None:
        """The adapter's name, or None for every way to say that there is none."""
        return None if name in (None, "", NO_ADAPTER) else name
