"""Reference pictures from bytes to pixels: what files may be, and what is made of each kind."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from storyloom_model.identity.encoders.crops import Mask, Pixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
MAX_PIXELS = 4096 * 4096
MAX_BYTES = 32 << 20
LARGEST_SIDE = 2048
"""Larger pictures are reduced to this side; detectors and encoders see far less."""


class ReferenceProblem(ValueError):
    """A reference can't be used. The message says what is wrong with the picture and what to do, for its owner."""


def decode_picture(data: bytes) -> tuple[Pixels, list[str]]:
    """Decodes a picture to uint8 [h, w, 3] RGB, and says what was done to it.

    It is turned upright by its EXIF orientation; CMYK, grey, palette and 16-bit pictures become 8-bit RGB;
    what is transparent becomes white; of an animation the first frame is taken.

    Raises:
        ReferenceProblem: the data are not a picture of a known format, are damaged, or are too large.
    """
    image, notes = _open(data, "picture")
    return np.asarray(_rgb(image)), notes


def decode_mask(data: bytes, height: int, width: int, original: tuple[int, int]) -> Mask:
    """Decodes a mask, white where the character is, to bool [height, width]; `original` is its picture's (w, h).

    Raises:
        ReferenceProblem: the data are not a picture, are of another size than the reference, or are all black.
    """
    image, _ = _open(data, "mask", reduced=False)
    if image.size != original:
        raise ReferenceProblem(
            f"the mask is {image.width}x{image.height} pixels and its picture {original[0]}x{original[1]}; "
            "give a mask of the picture's size"
        )
    grey = _rgb(image).convert("L").resize((width, height), Image.Resampling.BOX)
    mask: Mask = np.asarray(grey) > 127
    if not mask.any():
        raise ReferenceProblem("the mask is black everywhere; make it white where the character is")
    return mask


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture as it is seen, before it is reduced; `data` decode."""
    image, _ = _open(data, "picture", reduced=False)
    return image.size


def _open(data: bytes, what: str, *, reduced: bool = True) -> tuple[Image.Image, list[str]]:
    if len(data) > MAX_BYTES:
        raise ReferenceProblem(f"the {what} has {len(data) >> 20} MiB; send at most {MAX_BYTES >> 20}")
    notes: list[str] = []
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ReferenceProblem(
                    f"the {what} has {image.width}x{image.height} pixels; send at most {MAX_PIXELS >> 20} megapixels"
                )
            if getattr(image, "n_frames", 1) > 1:
                notes.append(f"the {what} is animated: its first frame was taken")
                image.seek(0)
            if reduced:
                image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            image.load()
            upright = ImageOps.exif_transpose(image)
    except ReferenceProblem:
        raise
    except UnidentifiedImageError as error:
        raise ReferenceProblem(f"the {what} is not an image file; send a {', '.join(FORMATS)} file") from error
    except Image.DecompressionBombError as error:
        raise ReferenceProblem(
            f"the {what} has far too many pixels; send at most {MAX_PIXELS >> 20} megapixels"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ReferenceProblem(f"the {what} is damaged ({error}); send another file") from error
    if reduced and max(upright.size) > LARGEST_SIDE:
        upright.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    return upright, notes


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode, on white where it is transparent."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        deep = values.max(initial=0) > 255
        return Image.fromarray(np.clip(values / (257 if deep else 1), 0, 255).astype(np.uint8), "L").convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("RGB")
