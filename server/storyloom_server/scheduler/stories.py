"""What the scheduler knows of a story: its shape, its owner, where it is in its life."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

MEGAPIXEL = 2**20
"""Pixels of a 1024 x 1024 picture: the unit of all loads, so that coefficients are of a readable size."""

CONTROLNET_ROW = 0.44
"""What a row costs in a ControlNet against the whole UNet, in operations of SDXL at 1024 x 1024 (SD 1.5: 0.33)."""


class Status(enum.Enum):
    """Where a story is in its life. The last three are final."""

    QUEUED = "queued"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({Status.FINISHED, Status.FAILED, Status.CANCELLED})


class Priority(enum.IntEnum):
    """How urgent a story is among those of its tenant; the value is its weight."""

    LOW = 1
    NORMAL = 4
    HIGH = 16


class Load(NamedTuple):
    """What some stories ask of one batch step: numbers that add up.

    ``row_megapixels`` are rows times the megapixels of each, with the part of a row that a ControlNet takes.
    ``cross`` counts pairs of frames of a story that attend to each other (own ones included, per guidance branch) times
    the square of their megapixels.
    """

    stories: int = 0
    rows: int = 0
    row_megapixels: float = 0.0
    cross: float = 0.0

    def __add__(self, other: Load) -> Load:  # type: ignore[override]  # Loads add up; tuples would be joined.
        return Load(
            self.stories + other.stories,
            self.rows + other.rows,
            self.row_megapixels + other.row_megapixels,
            self.cross + other.cross,
        )

    def __sub__(self, other: Load) -> Load:
        return Load(
            self.stories - other.stories,
            self.rows - other.rows,
            self.row_megapixels - other.row_megapixels,
            self.cross - other.cross,
        )

    @classmethod
    def total(cls, loads: Iterable[Load]) -> Load:
        """The sum of some loads: column by column, which is several times as fast as one addition after the other."""
        return cls(*map(sum, zip(*loads, strict=True)))


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps of a story, one after the other, that ask for the same.

    ``groups`` are rows of each branch that attend to each other, group by group. ``controlled`` are rows of each branch
    that go through a ControlNet, once for each that they go through.
    """

    steps: int
    groups: tuple[int, ...]
    controlled: int = 0


@dataclass(frozen=True, slots=True)
class StoryShape:
    """What decides a story's cost.

    ``frames`` become pictures. ``anchors`` are frames that only lend their keys: they are rows like any other and never
    decoded. ``branches`` is 2 with classifier-free guidance, else 1. ``pixels`` are those of one frame. ``phases`` are
    all ``steps`` in order; none: every step has the frames and anchors for rows, all in one group. It is encoded
    and decoded ``rounds`` times, with an equal part of the steps each.

    Raises:
        ValueError: a number is out of range.
    """

    frames: int
    branches: int
    pixels: int
    steps: int
    anchors: int = 0
    phases: tuple[Phase, ...] = ()
    rounds: int = 1

    def __post_init__(self) -> None:
        if (
            min(self.frames, self.pixels, self.steps, self.rounds) < 1
            or self.anchors < 0
            or self.branches not in (1, 2)
        ):
            raise ValueError(f"{self} is no story; frames, pixels and steps must be 1 or more, branches 1 or 2")
        sound = all(one.steps > 0 and one.groups and min(one.groups) > 0 <= one.controlled for one in self.phases)
        if not sound or (self.phases and sum(one.steps for one in self.phases) != self.steps):
            raise ValueError(f"{self} is no story; its phases take all of its steps, each with groups of 1 or more")

    @property
    def rows(self) -> int:
        """Rows of the largest batch step that the story takes; never split."""
        return self.load.rows

    @property
    def load(self) -> Load:
        """What the story adds to a batch step at most."""
        return max(load for _, load in self.loads_after(0))

    def rounds_after(self, done_steps: int) -> int:
        """Rounds that begin after that in which so many steps have been done."""
        left = self.steps - done_steps
        return max(-(-left * self.rounds // self.steps) - 1, 0)

    def loads_after(self, done_steps: int) -> list[tuple[int, Load]]:
        """What the story adds to the batch steps that are left after so many: numbers of steps, and their load."""
        left, ends = list[tuple[int, Load]](), 0
        for phase in self.phases or [Phase(self.steps, (self.frames + self.anchors,))]:
            ends += phase.steps
            if ends > done_steps:
                left.append((min(phase.steps, ends - done_steps), self._load(phase)))
        return left

    def _load(self, phase: Phase) -> Load:
        megapixels = self.pixels / MEGAPIXEL
        rows = self.branches * sum(phase.groups)
        work = rows + CONTROLNET_ROW * self.branches * phase.controlled
        pairs = self.branches * sum(frames**2 for frames in phase.groups)
        return Load(1, rows, work * megapixels, pairs * megapixels**2)


@dataclass(frozen=True, slots=True)
class StorySpec:
    """A story as it is submitted.

    Args:
        key: what stories must share to take a step together (model, size, adapter).
        weight: the tenant's share of the device against other tenants', above 0.
        deadline: seconds of the scheduler's clock by which it must be finished, or None.
        done_steps: steps taken before, when it goes on from a checkpoint.
        alone: it is suspected of killing the engine and takes its steps with nobody else.
        preview_interval: steps from one preview to the next; 0 for none.

    Raises:
        ValueError: a number is out of range.
    """

    story_id: str
    tenant: str
    key: Hashable
    shape: StoryShape
    weight: float = 1.0
    priority: Priority = Priority.NORMAL
    deadline: float | None = None
    done_steps: int = 0
    alone: bool = False
    preview_interval: int = 0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"story {self.story_id} has a tenant of weight {self.weight}; set it above 0")
        if not 0 <= self.done_steps <= self.shape.steps:
            raise ValueError(
                f"story {self.story_id} has done {self.done_steps} of {self.shape.steps} steps; start it anew"
            )
        if self.preview_interval < 0:
            raise ValueError(f"story {self.story_id} has preview interval {self.preview_interval}; 0 means no previews")
