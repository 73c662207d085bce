"""The base models that packages are made of, and the settings that suit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storyloom_model.manifest import SolverName
from storyloom_model.package import PackageError

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Base:
    """``sizes`` are (width, height) in pixels, the usual one first."""

    title: str
    sizes: tuple[Size, ...]
    steps: int
    guidance_scale: float
    solver: SolverName = "ddim"


_SD15_SIZES = ((512, 512), (512, 640), (640, 512), (512, 768), (768, 512), (768, 768))
_SD15 = Base("SD 1.5", _SD15_SIZES, steps=30, guidance_scale=7.0)
_FACTOR = 8
"""Pixels of a latent's side."""


def base_of(unet: Mapping[str, Any]) -> Base:
    """The base model of a UNet.

    Args:
        unet: its configuration.

    Raises:
        PackageError: packages cannot be made of it.
    """
    if unet.get("addition_embed_type") is not None:
        raise PackageError(
            "this is a model in the form of SDXL, with two text encoders, which cannot be served yet; take one in the "
            "form of SD 1.5"
        )
    channels = unet.get("in_channels", 4)
    if channels != 4:
        raise PackageError(
            f"the UNet takes {channels} channels, as models for inpainting and editing do; take the model itself"
        )
    if unet.get("encoder_hid_dim_type") is not None or unet.get("class_embed_type") is not None:
        raise PackageError("the UNet takes more than a text; take a model in the form of SD 1.5")
    side = _FACTOR * int(unet.get("sample_size") or 64)
    return _SD15 if side == _SD15_SIZES[0][0] else Base("SD 1.5", ((side, side),), _SD15.steps, _SD15.guidance_scale)
