"""Reads pictures that clients send, with guards: nothing is decoded before its header says that it is small enough.

What comes out is RGB as people see it (turned as EXIF says, colours in sRGB, transparency on white) and nothing else:
no metadata of the client's goes any further.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from storyloom_server.violations import Findings

_FORMATS = ("PNG", "JPEG", "WEBP")
_MEGA = 1_000_000
_MIB = 1024 * 1024
# Below this there is no character to see.
_MIN_SIDE = 16
# Modes whose alpha is theirs or may be in their palette.
_MAY_BE_CLEAR = ("RGBA", "LA", "PA", "P", "RGBa", "La")


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What is read at most."""

    max_mib: float = 4.0
    max_megapixels: float = 16.0


def read_picture(found: Findings, path: str, data: bytes, limits: PictureLimits) -> NDArray[np.uint8] | None:
    """Decodes a picture to uint8 RGB [height, width, 3], or notes at ``path`` what is wrong with it.

    At 16 megapixels it takes a core for one to several seconds and some 500 MiB; call it off the event loop, for few
    pictures at a time.
    """
    if not data:
        found.add(path, "is empty; send a PNG, JPEG or WebP file")
    elif len(data) > limits.max_mib * _MIB:
        found.add(path, f"has {len(data) / _MIB:.1f} MiB; {limits.max_mib:g} are allowed")
    else:
        try:
            return _decode(data, limits)
        except _BadPictureError as error:
            found.add(path, str(error))
        except Exception:  # noqa: BLE001 - decoders raise whatever they like for broken files.
            found.add(path, "is damaged or cut off; send the whole file again")
    return None


class _BadPictureError(Exception):
    """The message says what is wrong and what to do."""


def _decode(data: bytes, limits: PictureLimits) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        # Pillow warns of large pictures; the header is checked right after.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with _open(data) as image:
            _check_header(image, limits)
            turned = ImageOps.exif_transpose(_shrunk_depth(image))
            return np.asarray(_on_white(_in_srgb(turned)))


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _BadPictureError("has far too many pixels; send a smaller one") from error
    except UnidentifiedImageError as error:
        raise _BadPictureError("is not a PNG, JPEG or WebP file; convert it") from error


def _check_header(image: Image.Image, limits: PictureLimits) -> None:
    width, height = image.size
    if width * height > limits.max_megapixels * _MEGA:
        raise _BadPictureError(
            f"has {width}x{height} pixels; {limits.max_megapixels:g} megapixels are allowed; make it smaller"
        )
    if min(width, height) < _MIN_SIDE:
        raise _BadPictureError(f"has {width}x{height} pixels; {_MIN_SIDE} are needed on each side")
    if getattr(image, "is_animated", False):
        raise _BadPictureError("is animated, and which of its pictures is meant is unclear; send a still one")


def _shrunk_depth(image: Image.Image) -> Image.Image:
    """The picture, decoded, with 8 bits a channel: 16-bit greys would be clipped instead of scaled."""
    image.load()
    if image.mode not in ("I", "I;16", "I;16B", "I;16L"):
        return image
    grey = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    grey.info.update(image.info)
    return grey


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours as the embedded profile means them. A profile that cannot be used is left aside, as browsers do."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    output = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        meant = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, meant, ImageCms.createProfile("sRGB"), outputMode=output)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return image if converted is None else converted


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in _MAY_BE_CLEAR or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
