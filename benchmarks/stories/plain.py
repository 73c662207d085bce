"""What can be said of pictures without any weights."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.metrics import GRID, background_distance
from benchmarks.stories.metric import Column
from benchmarks.stories.similarity import PerPicture, among
from benchmarks.stories.stories import MadeStory, Pixels

BACKGROUND = Column(
    "background",
    "background diversity",
    "RMS distance of two frames' borders, where people seldom stand, over all pairs; in [0, 1]. A method can buy "
    "consistency by repeating itself: then this falls",
)


class PlainMetrics:
    """Background diversity, of `quality.metrics`."""

    columns = (BACKGROUND,)

    def measure(self, story: MadeStory) -> dict[str, PerPicture]:
        pictures = [_divisible(picture) for picture in story.pictures]
        return {BACKGROUND.key: among(len(pictures), lambda a, b: _distance(pictures[a], pictures[b]))}


def _divisible(picture: Pixels) -> Pixels:
    """Cut to sides that the grid divides."""
    height, width = picture.shape[0] // GRID * GRID, picture.shape[1] // GRID * GRID
    return picture[:height, :width]


def _distance(a: Pixels, b: Pixels) -> float | None:
    return background_distance(np.stack([a, b]))
