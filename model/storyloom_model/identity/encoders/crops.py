"""The two crops of a reference that encoders see: the aligned face, and the character on white."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]
Landmarks: TypeAlias = NDArray[Any]

RECOGNISER_SIZE = 112
"""Side of the crops that face recognisers take, and of insightface's alignment target."""


def aligned_face(picture: Pixels, landmarks: Landmarks, size: int = RECOGNISER_SIZE) -> Pixels:
    """Warps a face so that its five landmarks [5, 2] (x, y) lie where face recognisers expect them.

    `picture` is uint8 [h, w, 3]; what lies outside of it is black. At multiples of 112 this is insightface's
    ``norm_crop``, which takes no other sizes.
    """
    import cv2
    from insightface.utils.face_align import estimate_norm

    transform = estimate_norm(np.asarray(landmarks, np.float32), RECOGNISER_SIZE) * (size / RECOGNISER_SIZE)
    return np.asarray(cv2.warpAffine(picture, transform, (size, size), borderValue=0.0), np.uint8)


PORTRAIT_SIZE = 224
"""Side of the crops that CLIP image encoders take."""
_PORTRAIT_FACES = 3.0
"""Side of a portrait in sides of the face: the face is a ninth of it. PhotoMaker was trained on squares around faces
that fill more than a tenth."""


def portrait(picture: Pixels, box: tuple[float, float, float, float], size: int = PORTRAIT_SIZE) -> Pixels:
    """The square around a face with hair and shoulders, at `size` x `size` pixels, as far as the picture reaches.

    `box` is the face's left, top, right and bottom in the picture, uint8 [h, w, 3].
    """
    left, top, right, bottom = box
    height, width = picture.shape[:2]
    side = max(1, min(round(_PORTRAIT_FACES * max(right - left, bottom - top)), height, width))
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2), 0), height - side)
    cut = Image.fromarray(np.ascontiguousarray(picture[y : y + side, x : x + side]))
    return np.asarray(cut.resize((size, size), Image.Resampling.BICUBIC))


def whitened_character(picture: Pixels, mask: Mask, size: int) -> Pixels:
    """Cuts out the bounding box of `mask` [h, w], whitens what is not in it, and resizes to a square.

    The mask's edge is softened a little and the proportions are not kept, as in StoryMaker's release.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("the mask is empty")
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    soft = Image.fromarray((mask[box] * np.uint8(255)), "L").filter(ImageFilter.GaussianBlur(1.1))
    white = Image.new("RGB", soft.size, "white")
    character = Image.composite(Image.fromarray(np.ascontiguousarray(picture[box])), white, soft)
    return np.asarray(character.resize((size, size), Image.Resampling.BICUBIC))
