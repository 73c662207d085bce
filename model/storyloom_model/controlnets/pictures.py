"""What ControlNets are shown: pictures of users at the size of a frame, and drawings of faces. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from storyloom_model.identity.encoders.crops import Landmarks, Pixels
from storyloom_model.identity.encoders.pictures import decode_picture
from storyloom_model.identity.published.instantid import draw_face


def control_picture(data: bytes, width: int, height: int) -> Pixels:
    """An image file at the size of a frame, [height, width, 3]; its proportions are not kept, as in diffusers.

    Raises:
        ReferenceProblem: the data are not a picture of a known format, are damaged, or are too large.
    """
    pixels = decode_picture(data).pixels
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def fitted(landmarks: Landmarks, size: ArrayLike, width: int, height: int) -> NDArray[np.float64]:
    """Landmarks of a picture, in a frame that holds all of the picture in its middle, as large as may be.

    Args:
        landmarks: [5, 2] in pixels of the picture.
        size: width and height of the picture.
        width: of the frame.
        height: likewise.
    """
    frame, picture = np.array([width, height], np.float64), np.asarray(size, np.float64)
    scale = (frame / picture).min()
    fit: NDArray[np.float64] = np.asarray(landmarks, np.float64) * scale + (frame - scale * picture) / 2
    return fit


_FULL_SIZE = 512
"""Pixels of a frame's shorter side from which on drawings are the authors'. No IdentityNet is published for smaller
frames, in which dots of that size would hide the face; there they shrink with the frame.
"""


def draw_faces(faces: Sequence[Landmarks], width: int, height: int) -> Pixels:
    """The drawings of some faces in one picture, later ones over earlier ones; see ``draw_face``."""
    size = min(1.0, min(width, height) / _FULL_SIZE)
    picture = np.zeros((height, width, 3), np.uint8)
    for landmarks in faces:
        drawn = draw_face(landmarks, width, height, size)
        picture = np.where(drawn.any(-1, keepdims=True), drawn, picture)
    return picture
