"""The figures of a long story, as pure functions of its faces and of the times at which its frames came."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.quality.metrics import Interval
from benchmarks.stories.similarity import Vectors
from storyloom_model.windows import Window

_DRAWS = 2000
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Identity agreement of the first frames with each other and with the last ones.

    Attributes:
        within: mean cosine over the pairs of the first frames.
        between: mean cosine over the pairs of a last and a first frame.
        difference: between less within, on the same draws of first frames.
        faces: of the first frames and of the last, those that show a face.
    """

    within: Interval
    between: Interval
    difference: Interval
    faces: tuple[int, int]


START = -1
"""The frame of the moment at which a run began."""


@dataclass(frozen=True)
class Moment:
    """When a frame came: seconds since its story was accepted, and the processor time of the engine of its run."""

    frame: int
    seconds: float
    processor: float
    run: int = 0


@dataclass(frozen=True)
class WindowCost:
    """What a frame of a window cost: `seconds` on the wall, `processor` seconds of the engine."""

    first: int
    frames: int
    anchors: int
    seconds: float
    processor: float


@dataclass(frozen=True)
class Course:
    """How the cost of a frame goes through a story, over its windows with anchors that make as many frames as may be.

    Attributes:
        first, last: median of the first tenth of these windows, and of the last.
        growth: by linear regression, from the first of these windows to the last, as a part of their mean, with a
            bootstrap interval over windows. 0 is flat.
    """

    first: float
    last: float
    growth: Interval


def agreement(faces: Sequence[Vectors], first: Sequence[int], last: Sequence[int], seed: int = 0) -> Agreement | None:
    """How alike faces are; percentile bootstrap intervals (Efron, 1979) over frames, drawn among first and last apart.

    Args:
        faces: of each frame the most prominent face, [1, d] of length 1, or none, [0, d].
        first, last: frames to compare.

    Returns:
        None where fewer than two of the first or none of the last show a face.
    """
    ours, theirs = _stacked(faces, first), _stacked(faces, last)
    if len(ours) < 2 or not len(theirs):
        return None
    inside, across = ours @ ours.T, ours @ theirs.T
    rng = np.random.default_rng(seed)
    drawn: list[tuple[float, float]] = []
    while len(drawn) < _DRAWS:
        rows, columns = rng.integers(len(ours), size=len(ours)), rng.integers(len(theirs), size=len(theirs))
        if len(set(rows)) > 1:
            drawn.append((_within(inside, rows), float(across[np.ix_(rows, columns)].mean())))
    draws = np.asarray(drawn)
    within, between = _within(inside, np.arange(len(ours))), float(across.mean())
    frames = len(ours)
    return Agreement(
        within=_interval(within, draws[:, 0], frames),
        between=_interval(between, draws[:, 1], frames),
        difference=_interval(between - within, draws[:, 1] - draws[:, 0], frames),
        faces=(len(ours), len(theirs)),
    )


def window_costs(windows: Sequence[Window], moments: Sequence[Moment]) -> list[WindowCost]:
    """What a frame of each window cost, from the last frame of the window before to its own last one.

    A window within which a run was stopped is left out: nobody knows what it cost.
    """
    came = {moment.frame: moment for moment in moments if moment.frame != START}
    before = next(moment for moment in moments if moment.frame == START)
    costs = []
    for window in windows:
        last = max((came[frame] for frame in window.frames), key=lambda moment: moment.seconds)
        count = len(window.frames)
        if last.run == before.run:
            costs.append(
                WindowCost(
                    first=window.frames[0],
                    frames=count,
                    anchors=len(window.anchors),
                    seconds=(last.seconds - before.seconds) / count,
                    processor=(last.processor - before.processor) / count,
                )
            )
        before = last
    return costs


def course(windows: Sequence[WindowCost], values: Sequence[float], seed: int = 0) -> Course | None:
    """How `values`, one a window, go through the story; None for fewer than three windows that can be compared.

    The first window has no anchors, and the last one perhaps fewer frames: they cost other than the rest by design.
    """
    later = [(window, value) for window, value in zip(windows, values, strict=True) if window.first > 0]
    full = max((window.frames for window, _ in later), default=0)
    kept = np.asarray([value for window, value in later if window.frames == full])
    if len(kept) < 3:
        return None
    tenth = max(1, len(kept) // 10)
    places = np.arange(len(kept))
    rows = np.random.default_rng(seed).integers(len(kept), size=(_DRAWS, len(kept)))
    rows = rows[(rows != rows[:, :1]).any(1)]  # one window alone has no slope
    return Course(
        first=statistics.median(kept[:tenth].tolist()),
        last=statistics.median(kept[-tenth:].tolist()),
        growth=_interval(float(_growth(places, kept)), _growth(rows, kept[rows]), len(kept)),
    )


def _stacked(faces: Sequence[Vectors], frames: Sequence[int]) -> Numbers:
    found = [faces[frame][0] for frame in frames if len(faces[frame])]
    return np.asarray(np.stack(found) if found else np.zeros((0, 1)), np.float64)


def _within(cosines: Numbers, rows: npt.NDArray[np.int64]) -> float:
    """Mean over pairs of two frames; a frame that was drawn twice is not compared with itself."""
    others = rows[:, None] != rows[None, :]
    return float(cosines[np.ix_(rows, rows)][others].mean())


def _growth(places: npt.NDArray[np.int64], values: Numbers) -> Numbers:
    """Slope of the regression line over the last axis, times its n - 1 steps, as a part of the mean."""
    centred = places - places.mean(-1, keepdims=True)
    slope = (centred * values).sum(-1) / (centred**2).sum(-1)
    return np.asarray(slope * (values.shape[-1] - 1) / values.mean(-1))


def _interval(value: float, draws: Numbers, count: int) -> Interval:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(value, float(low), float(high), count)
