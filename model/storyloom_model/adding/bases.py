"""The base models that packages are made of, and the settings that suit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
_SDXL_SIZES = ((1024, 1024), (896, 1152), (1152, 896), (832, 1216), (1216, 832), (960, 1280), (1280, 960))
_SDXL = Base("SDXL", _SDXL_SIZES, steps=25, guidance_scale=7.5, solver="unipc")
_FACTOR = 8
"""Pixels of a latent's side."""


def base_of(unet: Mapping[str, Any]) -> Base:
    """The base model of a UNet.

    Args:
        unet: its configuration.

    Raises:
        PackageError: packages cannot be made of it.
    """
    channels = unet.get("in_channels", 4)
    if channels != 4:
        raise PackageError(
            f"the UNet takes {channels} channels, as models for inpainting and editing do; take the model itself"
        )
    added = unet.get("addition_embed_type")
    more = (unet.get(kind) for kind in ("encoder_hid_dim_type", "class_embed_type"))
    if any(kind is not None for kind in more) or added not in (None, "text_time"):
        raise PackageError("the UNet takes more than a text; take a model in the form of SD 1.5 or SDXL")
    base = _SD15 if added is None else _SDXL
    side = _FACTOR * int(unet.get("sample_size") or base.sizes[0][0] // _FACTOR)
    return base if side == base.sizes[0][0] else replace(base, sizes=((side, side),))
