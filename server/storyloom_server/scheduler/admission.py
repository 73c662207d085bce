"""Whether a new story is accepted, and when it will be done: decided before anything is promised.

The estimate of a story's completion is its own time alone, ``own``, plus what the open stories delay it:

* An open story of its tenant delays it by at most ``min(left, own * its priority / ours)``: less work for its priority
  goes first and is over after ``left``; more work for its priority is overtaken, but not without some turns. Of a story
  that can share its steps with ours only the part counts that makes the shared step longer.
* The stories of another tenant together delay it by no more than that tenant's share of the device allows:
  ``own_tenant_total * its weight / ours``, where ``own_tenant_total`` is our time with the delays of our own tenant.

It is an estimate, not a bound: stories that come later and need less may overtake.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from storyloom_server.scheduler.cost import CostCoefficients
from storyloom_server.scheduler.stories import Load, StorySpec


class Reason(enum.Enum):
    """Why a story is refused."""

    QUEUE_FULL = "queue_full"
    TENANT_LIMIT = "tenant_limit"
    DEADLINE = "deadline"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Accepted:
    """``estimated_seconds`` until it is finished; None while the cost model is not calibrated."""

    estimated_seconds: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """``retry_seconds``: when to try again; None where that cannot help, or when nothing is known."""

    reason: Reason
    retry_seconds: float | None
    estimated_seconds: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """An open story and how far it is: steps taken (``spec.done_steps`` included) and frames decoded."""

    spec: StorySpec
    done_steps: int = 0
    done_frames: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """The rules.

    Args:
        max_open: stories that may be open at once, whoever owns them.
        max_open_per_tenant: those of one tenant.
        max_rows: rows of a batch step; stories that together need more cannot share one.
        max_story_row_megapixels: the largest story that the device can run (see ``MemoryModel.largest_story``); None
            where nothing is known.
    """

    max_open: int
    max_open_per_tenant: int
    max_rows: int
    max_story_row_megapixels: float | None = None

    def decide(
        self, new: StorySpec, open_stories: Iterable[Progress], costs: CostCoefficients, *, now: float
    ) -> Accepted | Refused:
        """Accepts or refuses ``new``. ``now`` is in the time of its deadline."""
        stories = list(open_stories)
        known = costs.calibrated
        estimate = self._estimate(new, stories, costs) if known else None
        most = self.max_story_row_megapixels
        if most is not None and new.shape.load.row_megapixels > most:
            return Refused(Reason.TOO_LARGE, None, None)
        if len(stories) >= self.max_open:
            return Refused(Reason.QUEUE_FULL, _first_done(stories, costs) if known else None, estimate)
        own = [story for story in stories if story.spec.tenant == new.tenant]
        if len(own) >= self.max_open_per_tenant:
            return Refused(Reason.TENANT_LIMIT, _first_done(own, costs) if known else None, estimate)
        if new.deadline is not None and estimate is not None and now + estimate > new.deadline:
            alone = costs.story_seconds(new.shape, new.done_steps)
            possible = now + alone <= new.deadline
            return Refused(Reason.DEADLINE, now + estimate - new.deadline if possible else None, estimate)
        return Accepted(estimate)

    def _estimate(self, new: StorySpec, stories: Iterable[Progress], costs: CostCoefficients) -> float:
        own = costs.story_seconds(new.shape, new.done_steps)
        delays: dict[str, float] = {new.tenant: 0.0}
        weights: dict[str, float] = {}
        load = new.shape.load
        for story in stories:
            spec = story.spec
            left = _seconds_left(story, costs)
            if spec.key == new.key and spec.shape.rows + load.rows <= self.max_rows:
                left *= _added_share(spec.shape.load, load, costs)
            delay = min(left, own * spec.priority / new.priority)
            delays[spec.tenant] = delays.get(spec.tenant, 0.0) + delay
            weights[spec.tenant] = spec.weight
        together = own + delays.pop(new.tenant)
        return together + sum(min(delay, together * weights[tenant] / new.weight) for tenant, delay in delays.items())


def _seconds_left(story: Progress, costs: CostCoefficients) -> float:
    return costs.story_seconds(story.spec.shape, story.done_steps, story.spec.shape.frames - story.done_frames)


def _added_share(rider: Load, opener: Load, costs: CostCoefficients) -> float:
    """The part of the rider's own step time by which it makes the opener's step longer."""
    added = costs.step_seconds(opener + rider) - costs.step_seconds(opener)
    return min(1.0, added / costs.step_seconds(rider))


def _first_done(stories: Iterable[Progress], costs: CostCoefficients) -> float:
    """Seconds until a place is free: the least that any of them still takes."""
    return min(_seconds_left(story, costs) for story in stories)
