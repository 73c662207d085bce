"""How well a character keeps its colours from frame to frame. numpy only.

The score compares colours: of skin, hair and clothes together, within the character's foreground. It does not
recognise faces, sees no shapes, and takes two people in the same clothes for one. Light and framing move it too. Use it
to compare stories and to find the frame that fell out of line, not as proof of identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Look: TypeAlias = NDArray[np.float32]
"""Shares of the colours of one character in one frame; they sum to 1."""

_LIGHTNESS_BINS, _HUE_BINS = 8, 12
_MOST_CHROMA = 0.3
"""Of a and b in OKLab; sRGB has little beyond."""
_LEAST_PIXELS = 16
"""A foreground smaller than this says nothing."""

_TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def oklab(colours: NDArray[np.uint8]) -> NDArray[np.float64]:
    """sRGB [..., 3] -> OKLab [..., 3] (Ottosson 2020), where equal distances look about equally different."""
    levels = colours / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    lab: NDArray[np.float64] = np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T
    return lab


def look(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Look | None:
    """The colours of a character in a picture.

    Args:
        picture: [H, W, 3].
        mask: [H, W], True where the character is.

    Returns:
        A histogram over OKLab, each pixel spread over its nearest bins, so that a small change of colour is a small
        change of the histogram. None when hardly a pixel is the character's.
    """
    if mask.sum() < _LEAST_PIXELS:
        return None
    lab = oklab(picture[mask])
    bins = np.array([_LIGHTNESS_BINS, _HUE_BINS, _HUE_BINS])
    unit = np.stack([lab[:, 0], *(0.5 + lab[:, axis] / (2 * _MOST_CHROMA) for axis in (1, 2))], axis=1)
    place = np.clip(unit, 0, 1) * (bins - 1)
    low = np.minimum(place.astype(int), bins - 2)
    part = place - low
    histogram = np.zeros(bins)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        np.add.at(histogram, tuple((low + corner).T), weight)
    flat: Look = (histogram.ravel() / len(lab)).astype(np.float32)
    return flat


def agreement(first: Look, second: Look) -> float:
    """Intersection of two looks: 1 for the same shares of the same colours, 0 for no colour in common."""
    return float(np.minimum(first, second).sum())


def scores(frames: Sequence[Mapping[str, Look]]) -> dict[str, float | None]:
    """For each character, the mean agreement over all pairs of its frames; None where it is in fewer than two.

    Args:
        frames: for each frame, the looks of those who are in it. Frames of several windows may be put together.
    """
    names = dict.fromkeys(name for looks in frames for name in looks)
    return {name: _mean_agreement([looks[name] for looks in frames if name in looks]) for name in names}


def story_score(by_character: Mapping[str, float | None]) -> float | None:
    """Mean over the characters that have a score; None when none has."""
    values = [score for score in by_character.values() if score is not None]
    return sum(values) / len(values) if values else None


def _mean_agreement(looks: Sequence[Look]) -> float | None:
    pairs = [agreement(first, second) for first, second in combinations(looks, 2)]
    return sum(pairs) / len(pairs) if pairs else None
