"""A story while it is in the scheduler: where it is, what it still costs, and how it ranks among its tenant's."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from storyloom_server.scheduler.cost import CostCoefficients
from storyloom_server.scheduler.stories import Load, Status, StorySpec

_AGEING = 0.1
"""How much a story's rank gains for each of its own solo times that it has waited: after ten it counts half as long.

Chosen by simulation of mixed stories on a saturated device at 0.8 of its capacity: against none, p99 latency falls from
112 to 90 s and p99 slowdown from 8.9 to 7.2, and 91 % instead of 93 % of the stories are done in three times their solo
time. Larger values cost more of the short stories than they give to the long ones.
"""


@dataclass(slots=True)
class OpenStory:
    """A story in the scheduler.

    ``order`` numbers submissions, ``submitted`` is the clock's time of it, ``queued_since`` the engine's batch count.
    ``waiting_since`` is the tenant's turn count (its batches) when the story was last in one, or became ready; before
    that it is infinite, or minus infinite once the story has waited too long to be let in.
    ``steps_left`` counts down, those of all runs and passes; ``frames_left`` are the indexes still to be decoded.
    ``load`` is that of the next step, ``held`` that of the largest, by which the story's state is counted.

    The last fields are prices in seconds, which hold while the cost model does (see ``price``). ``step_seconds`` is a
    step alone, ``marginal_seconds`` what the story adds to a step of others, ``story_seconds`` the whole story alone;
    ``later`` are steps of another load than the next one's, and the seconds of all of them;
    ``impatience`` is the weight of a second's delay: more for a more urgent story, less for one that takes long anyway.
    """

    spec: StorySpec
    order: int
    submitted: float
    queued_since: int
    waiting_since: float = math.inf
    status: Status = Status.QUEUED
    steps_left: int = 0
    frames_left: deque[int] = field(default_factory=deque)
    load: Load = Load()  # noqa: RUF009 - frozen
    held: Load = Load()  # noqa: RUF009 - frozen
    step_seconds: float = 0.0
    marginal_seconds: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    story_seconds: float = 0.0
    later: tuple[int, float] = (0, 0.0)
    impatience: float = 0.0

    @classmethod
    def of(cls, spec: StorySpec, order: int, *, now: float, batches: int) -> OpenStory:
        frames = deque(range(spec.shape.frames))
        held = spec.shape.load
        story = cls(spec, order, now, batches, frames_left=frames, load=held, held=held)
        story.be_at(spec.done_steps)
        return story

    @property
    def done_steps(self) -> int:
        return self.spec.shape.steps - self.steps_left

    def be_at(self, done_steps: int) -> bool:
        """Counts steps as done; True when the next one has another load, so that prices are out of date."""
        shape = self.spec.shape
        self.steps_left = shape.steps - done_steps
        if len(shape.phases) < 2:
            return False
        before = self.load
        self.load = next((load for _, load in shape.loads_after(done_steps)), before)
        return self.load != before

    def price(self, coefficients: CostCoefficients) -> None:
        """Brings the prices up to date: when the story comes, and whenever the coefficients or its load are others."""
        shape = self.spec.shape
        self.step_seconds = max(coefficients.step_seconds(self.load), 1e-9)
        self.marginal_seconds = coefficients.marginal_seconds(self.load)
        self.encode_seconds = coefficients.encode_seconds(shape)
        self.decode_seconds = coefficients.decode_seconds(shape, shape.frames)
        self.story_seconds = self.encode_seconds + self.decode_seconds + shape.steps * self.step_seconds
        if len(shape.phases) > 1:
            self.story_seconds = coefficients.story_seconds(shape)
            rest = shape.loads_after(self.done_steps)[1:]
            self.later = sum(n for n, _ in rest), sum(n * coefficients.step_seconds(load) for n, load in rest)
        self.impatience = self.spec.priority / self.story_seconds

    def rank(self, now: float, left_out: float) -> Rank:
        """First who waited too long, then whose deadline is near but can be met, then who needs least for its priority
        and age.

        Too long has waited who waits since ``left_out`` or before. A deadline is near when the story needs over half of
        the device's time to meet it. One that cannot be met any more gives no right to go first; the story goes on, in
        case the estimate is wrong, until it has passed.
        """
        if self.waiting_since <= left_out:
            return (0, self.queued_since if self.status is Status.QUEUED else self.waiting_since, self.order, self)
        later_steps, later_seconds = self.later
        left = (self.steps_left - later_steps) * self.step_seconds + later_seconds + self.decode_seconds
        if self.status is Status.QUEUED:
            left += self.encode_seconds
        deadline = self.spec.deadline
        if deadline is not None and left <= deadline - now < 2 * left:
            return (1, deadline, self.order, self)
        age = 1 + _AGEING * (now - self.submitted) / self.story_seconds
        return (2, left / (self.spec.priority * age), self.order, self)


Rank = tuple[int, float, int, OpenStory]
"""Sorts a tenant's stories, the most entitled first: class, value in the class, order of submission; and the story."""
