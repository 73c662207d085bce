"""A discrete-event simulation of an engine: a virtual clock, a table of step costs, and stories that come at random.

Nothing takes real time but the scheduler itself: thousands of stories run in seconds, the same on every machine.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storyloom_server.scheduler import (
    CostModel,
    Decode,
    Encode,
    Limits,
    MemoryModel,
    Preview,
    Scheduler,
    Step,
    StoryShape,
    StorySpec,
    padded_rows,
)

SchedulerFactory = Callable[[Limits, CostModel, MemoryModel, Callable[[], float]], Scheduler]


@dataclass(frozen=True, slots=True)
class Device:
    """A simulated device: what each piece of work takes, in seconds.

    Args:
        source: where the figures are from.
        rows: row counts of the table, ascending; ``times`` the step times at them. Between two the time is linear,
            below the first constant; from the last on it grows in proportion to rows.
        cross_frame: how much a further frame of the same story adds to a row's time, as a share.
        buckets: row counts that rows are padded to, if any.
    """

    name: str
    source: str
    pixels: int
    rows: tuple[int, ...]
    times: tuple[float, ...]
    cross_frame: float
    encode: float
    decode: float
    buckets: tuple[int, ...] = ()

    def step(self, shapes: Sequence[StoryShape]) -> float:
        rows = sum(shape.rows for shape in shapes)
        pairs = sum(shape.rows * (shape.frames + shape.anchors - 1) for shape in shapes) / rows
        return self._table(padded_rows(rows, self.buckets)) * (1 + self.cross_frame * pairs)

    def solo(self, shape: StoryShape) -> float:
        """Seconds of a whole story with the device to itself."""
        return self.encode + shape.steps * self.step((shape,)) + shape.frames * self.decode

    def shared(self, shape: StoryShape, max_rows: int) -> float:
        """Seconds of the device that a story costs at least: all its steps in batches filled with its like."""
        count = max(1, max_rows // shape.rows)
        step = min(self.step((shape,) * n) / n for n in range(1, count + 1))
        return self.encode + shape.steps * step + shape.frames * self.decode

    def _table(self, rows: int) -> float:
        if rows >= self.rows[-1]:
            return self.times[-1] * rows / self.rows[-1]
        if rows <= self.rows[0]:
            return self.times[0]
        place = bisect_left(self.rows, rows)
        if self.rows[place] == rows:
            return self.times[place]
        low, high = self.rows[place - 1], self.rows[place]
        share = (rows - low) / (high - low)
        return self.times[place - 1] * (1 - share) + self.times[place] * share


@dataclass(frozen=True, slots=True)
class Arrival:
    """A story and the moment at which its user wants it: latency counts from there."""

    at: float
    spec: StorySpec


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one story: seconds from its intended start to its first finished step, and to its last frame."""

    spec: StorySpec
    at: float
    first_step: float
    latency: float


StoryMaker = Callable[[random.Random], tuple[StoryShape, str]]
"""Draws a story's shape and its compatibility key."""


def arrivals(story: StoryMaker, rate: float, count: int, seed: int) -> list[Arrival]:
    """An open-loop Poisson stream of ``count`` stories, ``rate`` a second."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    found, at = [], 0.0
    for index in range(count):
        at += draw.expovariate(rate)
        shape, key = story(draw)
        found.append(Arrival(at, StorySpec(str(index), "tenant", key, shape)))
    return found


def simulate(factory: SchedulerFactory, limits: Limits, device: Device, stream: Sequence[Arrival]) -> list[Outcome]:
    """Runs the stream to its end. The scheduler's cost model starts with nothing and learns from simulated times."""
    now = 0.0
    scheduler = factory(limits, CostModel(device.buckets), MemoryModel(), lambda: now)
    specs = {arrival.spec.story_id: arrival for arrival in stream}
    first_step: dict[str, float] = {}
    outcomes: list[Outcome] = []
    coming = iter(stream)
    upcoming = next(coming, None)
    while upcoming is not None or not scheduler.idle:
        while upcoming is not None and upcoming.at <= now:
            scheduler.submit(upcoming.spec)
            upcoming = next(coming, None)
        match scheduler.next_work():
            case Encode(story_id):
                now += device.encode
                scheduler.encoded(story_id, device.encode)
            case Step(story_ids):
                seconds = device.step([specs[story_id].spec.shape for story_id in story_ids])
                now += seconds
                scheduler.stepped(story_ids, seconds)
                for story_id in story_ids:
                    first_step.setdefault(story_id, now)
            case Decode(story_id, frames):
                seconds = device.decode * len(frames)
                now += seconds
                if scheduler.decoded(story_id, frames, seconds):
                    spec, at = specs[story_id].spec, specs[story_id].at
                    outcomes.append(Outcome(spec, at, first_step[story_id] - at, now - at))
            case Preview(story_id):
                now += device.decode
                scheduler.previewed(story_id, device.decode)
            case None:
                wait = scheduler.wait_seconds()
                times = [upcoming.at] if upcoming is not None else []
                times += [now + wait] if wait is not None else []
                now = max(now, min(times))
    return outcomes
