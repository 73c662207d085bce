"""InstantID (Wang et al. 2024): its adapter, and the drawing that its ControlNet, IdentityNet, is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.perceiver import PerceiverSizes, Resampler
from storyloom_model.identity.published.layers import AttentionLayer, read_layers
from storyloom_model.identity.published.makers import ReferenceTokens
from storyloom_model.identity.published.parts import loaded, split

SCALE = 0.8
FACE_LENGTH = 512**0.5
"""It was trained on embeddings as the recogniser gives them. Features keep only their direction; the recogniser ends in
a normalisation to variance 1 in each of its 512 channels, so that this is about their length.
"""

_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""Of the eyes, the nose and the corners of the mouth."""
_LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))
_LIMB_RADIUS, _POINT_RADIUS, _LIMB_BRIGHTNESS = 4, 10, 0.6


class FaceResampler(Resampler):
    """Learned queries over the one embedding of a face."""

    def forward(self, states: Tensor) -> Tensor:
        """[B, face] -> [B, queries, outputs]."""
        return super().forward(states[:, None])


def read_instantid(name: str, weights: Mapping[str, Tensor], layers: Sequence[AttentionLayer]) -> IdentityAdapter:
    """Makes an adapter of the weights of a file.

    Args:
        name: of the adapter.
        weights: with names that begin with "image_proj." and "ip_adapter.".
        layers: of the UNet that it is for.

    Raises:
        PackageError: the file is for another base model, or its weights are not InstantID's.
    """
    image, attention = split(name, weights, "image_proj.", "ip_adapter.")
    resampler = loaded(name, lambda own: FaceResampler(PerceiverSizes.of(own), own["latents"].shape[1]), image)
    found, low_rank = read_layers(name, attention, layers, len(resampler.norm_out.weight))
    maker = ReferenceTokens(resampler, ("face",), face_length=FACE_LENGTH)
    return IdentityAdapter(name, maker, found, SCALE, low_rank)


def draw_face(landmarks: ArrayLike, width: int, height: int, size: float = 1.0) -> NDArray[np.uint8]:
    """The drawing of a face: a limb from each eye and each corner of the mouth to the nose, and a dot on all five.

    Args:
        landmarks: [5, 2] in pixels, x first: left eye, right eye, nose, left and right corner of the mouth.
        width: of the drawing in pixels.
        height: likewise.
        size: of limbs and dots, in parts of what the authors have.

    Returns:
        [height, width, 3].
    """
    points = np.asarray(landmarks, dtype=np.float64)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.zeros((height, width, 3))
    for start, end in _LIMBS:
        limb = _ellipse(x, y, points[start], points[end], size * _LIMB_RADIUS)
        picture[limb] = np.floor(np.multiply(_COLOURS[start], _LIMB_BRIGHTNESS))
    for point, colour in zip(points, _COLOURS, strict=True):
        column, row = np.trunc(point)
        picture[(x - column) ** 2 + (y - row) ** 2 <= (size * _POINT_RADIUS) ** 2] = colour
    return picture.astype(np.uint8)


def _ellipse(
    x: NDArray[np.int_], y: NDArray[np.int_], start: NDArray[np.float64], end: NDArray[np.float64], radius: float
) -> NDArray[np.bool_]:
    """Whether pixels are in the ellipse whose long axis is the line between two points."""
    column, row = np.trunc((start + end) / 2)
    direction = start - end
    length = float(np.hypot(*direction))
    along, across = direction / max(length, 1.0), np.array([-direction[1], direction[0]]) / max(length, 1.0)
    u = (x - column) * along[0] + (y - row) * along[1]
    v = (x - column) * across[0] + (y - row) * across[1]
    inside: NDArray[np.bool_] = (u / max(length // 2, 1)) ** 2 + (v / radius) ** 2 <= 1
    return inside
