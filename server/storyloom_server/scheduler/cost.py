"""How long encoding, a batch step and decoding take: a model with few coefficients, learned from measurements.

The seconds of a batch step are ``base + per_row_megapixel * R + per_cross * X``. ``R`` is the number of rows times the
megapixels of each: convolutions, linear layers and text attention. ``X`` sums, over stories, branches times frames
squared times megapixels squared: each frame attends to its own positions and to the foreground of every other frame of
its story, and the cost of a pair goes with the product of their sizes. (Counted for SDXL at 1024 x 1024: 2.8 % more
operations a row for each further frame of the story, which is linear in frames a row and quadratic a story.) ``base``
is what does not depend on rows: launches, weights read once. On a device that one row already fills it is small and
batching brings little; where it is large, batching pays. The scheduler reads that off the coefficients.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from storyloom_server.scheduler.regression import NonNegativeRegression
from storyloom_server.scheduler.stories import MEGAPIXEL, Load, StoryShape

_CALIBRATED_AFTER = 8
"""Measured steps before predictions are used for decisions that cannot be taken back."""

_SETTLED_AFTER = 64
_REFRESH = 16
"""After so many measured steps the coefficients change only with every sixteenth: what follows from them is cached."""


@dataclass(frozen=True, slots=True)
class CostCoefficients:
    """A cost model at one moment, as it travels between processes. All in seconds.

    ``encode`` holds seconds of a story and of each of its frames, ``decode`` those of a call and of each megapixel.
    ``buckets``: the row counts, ascending, to the next of which a batch is padded; padding costs as much as rows do,
    and more rows than the largest are not padded. ``calibrated`` False: the figures are guesses, right in proportion at
    best.
    """

    base: float
    per_row_megapixel: float
    per_cross: float
    encode: tuple[float, float]
    decode: tuple[float, float]
    buckets: tuple[int, ...]
    calibrated: bool

    def step_seconds(self, load: Load) -> float:
        """Seconds of a batch step with this load, all of whose rows are of one size."""
        return self.batch_seconds(load.rows, load.row_megapixels, load.cross)

    def batch_seconds(self, rows: int, row_megapixels: float, cross: float) -> float:
        """``step_seconds`` of a load that is not made yet: who tries many sums of loads has them as plain numbers."""
        if self.buckets:
            row_megapixels *= _padding(rows, self.buckets)
        return self.base + self.per_row_megapixel * row_megapixels + self.per_cross * cross

    def marginal_seconds(self, load: Load) -> float:
        """Seconds by which this load makes a batch step longer, padding aside."""
        return self.per_row_megapixel * load.row_megapixels + self.per_cross * load.cross

    def encode_seconds(self, shape: StoryShape) -> float:
        return self.encode[0] + self.encode[1] * (shape.frames + shape.anchors)

    def decode_seconds(self, shape: StoryShape, frames: int) -> float:
        """Seconds to decode ``frames`` of a story, one call each."""
        return frames * (self.decode[0] + self.decode[1] * shape.pixels / MEGAPIXEL)

    def story_seconds(self, shape: StoryShape, done_steps: int = 0, frames_left: int | None = None) -> float:
        """Seconds that a story still takes when it has the device to itself; all of it by default."""
        later = shape.rounds_after(done_steps)
        seconds = self.decode_seconds(shape, shape.frames if frames_left is None else frames_left)
        seconds += later * (self.encode_seconds(shape) + self.decode_seconds(shape, shape.frames))
        seconds += sum(steps * self.step_seconds(load) for steps, load in shape.loads_after(done_steps))
        return seconds if done_steps else seconds + self.encode_seconds(shape)


class CostModel:
    """Learns the coefficients of one device.

    Args:
        buckets: see ``CostCoefficients``; none where rows are not padded.
    """

    def __init__(self, buckets: Sequence[int] = ()) -> None:
        self._buckets = tuple(buckets)
        self._step = NonNegativeRegression((0.02, 0.05, 0.002))
        self._encode = NonNegativeRegression((0.02, 0.005))
        self._decode = NonNegativeRegression((0.005, 0.05))
        self._coefficients = self._snapshot()

    @property
    def coefficients(self) -> CostCoefficients:
        return self._coefficients

    @property
    def calibrated(self) -> bool:
        """True once enough steps have been measured to refuse a story by its estimate."""
        return self._coefficients.calibrated

    def observe_step(self, load: Load, seconds: float) -> None:
        """A batch step with this load took so long."""
        row_megapixels = load.row_megapixels * _padding(load.rows, self._buckets)
        self._step.observe((1.0, row_megapixels, load.cross), seconds)
        if self._step.count <= _SETTLED_AFTER or self._step.count % _REFRESH == 0:
            self._coefficients = self._snapshot()

    def observe_encode(self, shape: StoryShape, seconds: float) -> None:
        self._encode.observe((1.0, shape.frames + shape.anchors), seconds)
        self._coefficients = self._snapshot()

    def observe_decode(self, shape: StoryShape, frames: int, seconds: float) -> None:
        """One call decoded ``frames`` frames of a story."""
        self._decode.observe((1.0, shape.pixels / MEGAPIXEL), seconds / frames)
        self._coefficients = self._snapshot()

    def _snapshot(self) -> CostCoefficients:
        base, per_row_megapixel, per_cross = self._step.coefficients
        encode, decode = self._encode.coefficients, self._decode.coefficients
        return CostCoefficients(
            base=base,
            per_row_megapixel=per_row_megapixel,
            per_cross=per_cross,
            encode=(encode[0], encode[1]),
            decode=(decode[0], decode[1]),
            buckets=self._buckets,
            calibrated=self._step.count >= _CALIBRATED_AFTER,
        )


def padded_rows(rows: int, buckets: Sequence[int]) -> int:
    """The rows of a batch after padding: those of the next bucket; as they are above the largest, or without any."""
    place = bisect_left(buckets, rows)
    return buckets[place] if place < len(buckets) else rows


def _padding(rows: int, buckets: Sequence[int]) -> float:
    """How many times as many rows a batch has when it is padded."""
    return padded_rows(rows, buckets) / rows if rows else 1.0
