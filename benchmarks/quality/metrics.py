"""The figures, as pure functions of readings and pictures.

Prompt agreement asks whether the pictures show what the prompts state; cross-frame agreement whether two frames of a
story show the same person, also in what no prompt states; background diversity whether the frames still differ where
the person is not, because a method can buy consistency by repeating itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from benchmarks.quality.attributes import PERSON, Reading

GRID = 16


@dataclass(frozen=True)
class Interval:
    """A mean over `stories` stories with its bootstrap 95 % confidence interval."""

    mean: float
    low: float
    high: float
    stories: int


@dataclass(frozen=True)
class Agreement:
    """How many of `asked` comparisons agreed."""

    agreed: int
    asked: int

    @property
    def fraction(self) -> float | None:
        """None where nothing was asked."""
        return self.agreed / self.asked if self.asked else None


@dataclass(frozen=True)
class StoryScore:
    """The figures of one story; fractions and distances in [0, 1], None where a story has nothing to compare."""

    prompt: float | None
    consistency: float | None
    consistency_stated: float | None
    consistency_unstated: float | None
    background: float | None
    scenes: float

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def _count(answers: Iterable[bool]) -> Agreement:
    listed = list(answers)
    return Agreement(sum(listed), len(listed))


def prompt_agreement(
    readings: Sequence[Reading],
    stated: Mapping[str, AbstractSet[str]],
    scenes: Sequence[str],
    visible: Sequence[AbstractSet[str]],
) -> Agreement:
    """Counts the stated and visible attributes that are read as stated, and the scenes; one entry per frame each.

    Args:
        readings: what the reader names in each frame.
        stated: attribute -> values that fit the description's words.
        scenes: the scene that each frame's prompt names.
        visible: the attributes that each frame's framing shows.
    """  # fmt: skip
    person = (
        reading[name] in values
        for reading, shown in zip(readings, visible, strict=True)
        for name, values in stated.items()
        if name in shown
    )
    places = (reading["scene"] == scene for reading, scene in zip(readings, scenes, strict=True))
    return _count([*person, *places])


def cross_frame_agreement(
    readings: Sequence[Reading], visible: Sequence[AbstractSet[str]], attributes: Iterable[str] = PERSON
) -> Agreement:
    """Counts, over all pairs of frames, the attributes visible in both that are read the same."""
    names = tuple(attributes)
    return _count(
        readings[a][name] == readings[b][name]
        for a, b in combinations(range(len(readings)), 2)
        for name in names
        if name in visible[a] and name in visible[b]
    )


def border() -> npt.NDArray[np.bool_]:
    """True at the cells of the GRID x GRID picture that lie outside the ellipse where a person stands."""
    centres = (np.arange(GRID) + 0.5) / GRID
    x, y = np.meshgrid(centres, centres)
    inside = ((x - 0.5) / 0.36) ** 2 + ((y - 0.65) / 0.6) ** 2 <= 1
    return np.asarray(~inside)


def background_distance(pictures: npt.NDArray[np.uint8]) -> float | None:
    """Mean over pairs of frames of the RMS distance of their borders, each a GRID x GRID picture in [0, 1].

    Args:
        pictures: uint8 [frames, h, w, 3], h and w multiples of GRID.

    Returns:
        The distance in [0, 1], or None for a single frame.

    Raises:
        ValueError: the size is not a multiple of GRID.
    """
    count, height, width, _ = pictures.shape
    if height % GRID or width % GRID:
        raise ValueError(f"pictures are {width} x {height}; use a size whose sides are multiples of {GRID}")
    blocks = pictures.reshape(count, GRID, height // GRID, GRID, width // GRID, 3)
    cells = blocks.mean((2, 4), dtype=np.float64)[:, border()] / 255
    distances = [float(np.sqrt(np.mean((a - b) ** 2))) for a, b in combinations(cells, 2)]
    return float(np.mean(distances)) if distances else None


def scene_diversity(readings: Sequence[Reading]) -> float:
    """Distinct scenes read, as a fraction of the frames."""
    return len({reading["scene"] for reading in readings}) / len(readings)


def bootstrap(values: Sequence[float], *, seed: int = 0, draws: int = 2000) -> Interval:
    """The mean of per-story values with a percentile bootstrap interval (Efron, 1979) over stories.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there is nothing to average; score at least one story")
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(array), size=(draws, len(array)))
    low, high = np.quantile(array[picks].mean(1), (0.025, 0.975))
    return Interval(float(array.mean()), float(low), float(high), len(array))


def summarise(scores: Sequence[StoryScore], *, seed: int = 0) -> dict[str, Interval]:
    """Each figure over the stories that have it; a figure that no story has is left out."""
    table = [score.as_dict() for score in scores]
    columns = {name: [row[name] for row in table if row[name] is not None] for name in StoryScore.__dataclass_fields__}
    return {name: bootstrap([float(v or 0) for v in values], seed=seed) for name, values in columns.items() if values}


def paired_differences(
    scores: Sequence[StoryScore], baseline: Sequence[StoryScore], *, seed: int = 0
) -> dict[str, Interval]:
    """Each figure minus the baseline's on the same story; the interval tells whether a setting changes it."""
    pairs = [(a.as_dict(), b.as_dict()) for a, b in zip(scores, baseline, strict=True)]
    differences: dict[str, list[float]] = {}
    for ours, theirs in pairs:
        for name, value in ours.items():
            other = theirs[name]
            if value is not None and other is not None:
                differences.setdefault(name, []).append(value - other)
    return {name: bootstrap(values, seed=seed) for name, values in differences.items()}
