"""Reference pictures from bytes to pixels: what files may be, and what is made of each kind."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from storyloom_model.identity.encoders.crops import Mask, Pixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
MAX_PIXELS = 1 << 24
MAX_BYTES = 1 << 25
LARGEST_SIDE = 2048
"""Larger pictures are reduced to this side; detectors and encoders see far less."""


class ReferenceProblem(ValueError):  # noqa: N818 - what is wrong with a user's picture, not with the program
    """A reference can't be used. The message says what is wrong with the picture and what to do, for its owner."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedPicture:
    """`pixels` uint8 [h, w, 3] RGB, upright; `size` (width, height) before it was reduced; `notes` for its owner."""

    pixels: Pixels
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


def decode_picture(data: bytes) -> DecodedPicture:
    """Decodes a picture. It is turned upright by its EXIF orientation; CMYK, grey, palette and 16-bit pictures become
    8-bit RGB; what is transparent becomes white; of an animation the first frame is taken.

    Raises:
        ReferenceProblem: the data are not a picture of a known format, are damaged, or are too large.
    """
    image, notes = _upright(data, "picture")
    size = image.size
    image = _rgb(image)
    if max(size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return DecodedPicture(np.asarray(image), size, notes)


def decode_mask(data: bytes, picture: DecodedPicture) -> Mask:
    """Decodes a mask, white where the character is, to bool [h, w] as the picture's pixels.

    Raises:
        ReferenceProblem: the data are not a picture, are of another size than the reference, or are all black.
    """
    image, _ = _upright(data, "mask")
    if image.size != picture.size:
        raise ReferenceProblem(
            f"the mask is {image.width}x{image.height} pixels and its picture {picture.size[0]}x{picture.size[1]}; "
            "give a mask of the picture's size"
        )
    height, width = picture.pixels.shape[:2]
    mask: Mask = np.asarray(_rgb(image).convert("L").resize((width, height), Image.Resampling.BOX)) > 127
    if not mask.any():
        raise ReferenceProblem("the mask is black everywhere; make it white where the character is")
    return mask


def _upright(data: bytes, what: str) -> tuple[Image.Image, tuple[str, ...]]:
    """The first frame, turned as its EXIF orientation says, with notes."""
    if len(data) > MAX_BYTES:
        raise ReferenceProblem(f"the {what} has {len(data) >> 20} MiB; send at most {MAX_BYTES >> 20}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(what, f"{image.width}x{image.height}")
            animated = getattr(image, "n_frames", 1) > 1
            image.load()
            upright = ImageOps.exif_transpose(image)
    except ReferenceProblem:
        raise
    except UnidentifiedImageError as error:
        raise ReferenceProblem(f"the {what} is not an image file; send one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(what, "far too many") from error
    except Exception as error:
        raise ReferenceProblem(f"the {what} is damaged ({error}); send another file") from error
    return upright, (f"the {what} is animated: its first frame was taken",) if animated else ()


def _too_large(what: str, size: str) -> ReferenceProblem:
    return ReferenceProblem(f"the {what} has {size} pixels; send at most {MAX_PIXELS >> 20} megapixels")


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode, on white where it is transparent."""
    if image.mode.startswith("I"):  # 16 bits a pixel, or 32 with the same range
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8), "L").convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")
