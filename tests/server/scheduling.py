"""Runs a scheduler as an engine does, on a virtual device, and checks its promises at every turn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from storyloom_server.scheduler import (
    CostModel,
    Decode,
    Encode,
    Limits,
    Load,
    MemoryModel,
    Preview,
    Priority,
    Scheduler,
    Status,
    Step,
    StoryShape,
    StorySpec,
)

PIXELS = 512 * 512
HOLDING_STATE = (Status.ENCODING, Status.DENOISING, Status.DECODING)


@dataclass(frozen=True)
class Traffic:
    """A story, when it comes, and when it is given up, if ever (both in seconds)."""

    spec: StorySpec
    arrives: float = 0.0
    cancelled_at: float | None = None


def spec(
    story_id: str,
    *,
    frames: int = 1,
    branches: int = 1,
    steps: int = 4,
    anchors: int = 0,
    pixels: int = PIXELS,
    tenant: str = "t",
    key: str = "k",
    weight: float = 1.0,
    priority: Priority = Priority.NORMAL,
    deadline: float | None = None,
    done_steps: int = 0,
    alone: bool = False,
    preview_interval: int = 0,
) -> StorySpec:
    shape = StoryShape(frames, branches, pixels, steps, anchors)
    return StorySpec(story_id, tenant, key, shape, weight, priority, deadline, done_steps, alone, preview_interval)


def load_of(specs: Sequence[StorySpec]) -> Load:
    return sum((one.shape.load for one in specs), Load())


@dataclass
class VirtualDevice:
    """What work takes in seconds; a step of several stories runs out of memory above ``memory_rows``."""

    base: float = 0.02
    per_row: float = 0.01
    encode: float = 0.03
    decode: float = 0.01
    memory_rows: float = math.inf

    def step(self, specs: Sequence[StorySpec]) -> float:
        return self.base + self.per_row * load_of(specs).rows


@dataclass
class Run:
    """One schedule from the first story to the last, and the record of it."""

    limits: Limits
    traffic: Sequence[Traffic]
    device: VirtualDevice = field(default_factory=VirtualDevice)
    now: float = 0.0
    log: list[object] = field(default_factory=list)
    batches: list[tuple[str, ...]] = field(default_factory=list)
    batch_seconds: list[float] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    frames: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    previews: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    finished: dict[str, float] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    memory_failures: int = 0
    longest_wait: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    longest_wait_in_turns: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most_ready: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.specs = {story.spec.story_id: story.spec for story in self.traffic}
        self.cost = CostModel()
        self.memory = MemoryModel()
        self.scheduler = Scheduler(self.limits, self.cost, self.memory, lambda: self.now)
        self._wait: dict[str, int] = {}
        self._wait_in_turns: dict[str, int] = {}
        self._since_step = {Encode: 0, Preview: 0, Decode: 0}
        self._quotas = dict.fromkeys(self._since_step, 1)

    def go(self, until: float = math.inf) -> Run:
        """Runs to the end, or to a moment; fails where a promise is broken."""
        coming = sorted(self.traffic, key=lambda story: story.arrives)
        leaving = sorted(
            (story for story in self.traffic if story.cancelled_at is not None),
            key=lambda story: story.cancelled_at or 0,
        )
        while (coming or not self.scheduler.idle) and self.now < until:
            assert len(self.log) < 50_000, "the scheduler never finishes this traffic"
            while coming and coming[0].arrives <= self.now:
                self.scheduler.submit(coming.pop(0).spec)
            while leaving and max(leaving[0].cancelled_at or 0, leaving[0].arrives) <= self.now:
                story_id = leaving.pop(0).spec.story_id
                if self.scheduler.remove(story_id, Status.CANCELLED):
                    self.cancelled.add(story_id)
            self._turn(coming)
            self._check_caps()
        return self

    def _turn(self, coming: Sequence[Traffic]) -> None:
        work = self.scheduler.next_work()
        self.log.append(work)
        if not isinstance(work, Step) and work is not None:
            self._since_step[type(work)] += 1
            if self._ready():
                assert self._since_step[type(work)] <= self._quotas[type(work)], "a stage starves the steps"
        match work:
            case Encode(story_id):
                assert self.scheduler.status(story_id) is Status.ENCODING
                self.now += self.device.encode
                self.scheduler.encoded(story_id, self.device.encode)
                self._wait[story_id] = self._wait_in_turns[story_id] = 0
            case Step(story_ids):
                self._step(story_ids)
            case Preview(story_id):
                self.now += self.device.decode
                self.previews[story_id] += 1
                self.scheduler.previewed(story_id, self.device.decode)
            case Decode(story_id, frames):
                self.now += self.device.decode
                self.frames[story_id] += frames
                if self.scheduler.decoded(story_id, frames, self.device.decode):
                    self.finished[story_id] = self.now
            case None:
                assert self.scheduler.idle, "there is work, and the scheduler holds it back"
                if coming:
                    self.now = max(self.now, coming[0].arrives)

    def _ready(self) -> list[str]:
        return self._with(Status.DENOISING)

    def _with(self, *wanted: Status) -> list[str]:
        return [story_id for story_id in self.specs if self.scheduler.status(story_id) in wanted]

    def _step(self, story_ids: tuple[str, ...]) -> None:
        specs = [self.specs[story_id] for story_id in story_ids]
        load = load_of(specs)
        assert len(set(story_ids)) == len(story_ids)
        assert all(self.scheduler.status(story_id) is Status.DENOISING for story_id in story_ids)
        assert len({one.key for one in specs}) == 1, "incompatible stories share a step"
        if len(specs) > 1:
            assert load.rows <= self.limits.max_rows
            assert load.row_megapixels <= self.memory.cap
            assert not any(one.alone for one in specs)
        if len(specs) > 1 and load.rows > self.device.memory_rows:
            self.memory_failures += 1
            assert self.scheduler.out_of_memory(story_ids)
            return
        seconds = self.device.step(specs)
        self.now += seconds
        self._count_waits(story_ids)
        self.batches.append(story_ids)
        self.batch_seconds.append(seconds)
        for story_id in story_ids:
            self.steps[story_id] += 1
        self.scheduler.stepped(story_ids, seconds)
        self._since_step = dict.fromkeys(self._since_step, 0)
        frames = sum(self.specs[one].shape.frames - len(self.frames[one]) for one in self._with(Status.DECODING))
        self._quotas = {
            Encode: -(-len(self._with(Status.QUEUED)) // 4) or 1,
            Decode: max(-(-frames // 4), int(seconds / max(self.device.decode, 1e-6)) + 1),
            Preview: -(-len(self._with(*HOLDING_STATE)) // 4) or 1,
        }

    def _count_waits(self, story_ids: tuple[str, ...]) -> None:
        tenants = {self.specs[story_id].tenant for story_id in story_ids}
        ready = self._ready()
        for tenant in {self.specs[story_id].tenant for story_id in ready}:
            count = sum(self.specs[story_id].tenant == tenant for story_id in ready)
            self.most_ready[tenant] = max(self.most_ready[tenant], count)
        for story_id in ready:
            if story_id in story_ids:
                self._wait[story_id] = self._wait_in_turns[story_id] = 0
                continue
            self._wait[story_id] += 1
            self.longest_wait[story_id] = max(self.longest_wait[story_id], self._wait[story_id])
            if self.specs[story_id].tenant in tenants:
                self._wait_in_turns[story_id] += 1
                self.longest_wait_in_turns[story_id] = max(
                    self.longest_wait_in_turns[story_id], self._wait_in_turns[story_id]
                )

    def _check_caps(self) -> None:
        active = [self.specs[story_id] for story_id in self._with(*HOLDING_STATE)]
        assert len(active) <= self.limits.max_active_stories
        assert len(active) <= 1 or load_of(active).rows <= self.limits.max_active_rows

    def check_the_end(self) -> None:
        """Every story finished or was cancelled; a finished one took exactly its steps and gave each frame once."""
        assert set(self.finished) | self.cancelled == set(self.specs)
        assert not set(self.finished) & self.cancelled
        for story_id in self.finished:
            one = self.specs[story_id]
            assert self.steps[story_id] == one.shape.steps - one.done_steps
            assert sorted(self.frames[story_id]) == list(range(one.shape.frames))
            interval = one.preview_interval
            assert self.previews[story_id] <= (one.shape.steps // interval if interval else 0)
        for story_id, wait in self.longest_wait_in_turns.items():
            ready = self.most_ready[self.specs[story_id].tenant]
            assert wait < self.limits.patience + ready, "a story starves beside others of its tenant"
