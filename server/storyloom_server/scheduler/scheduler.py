"""What the engine does next: which story is encoded, which take a step together, which frames are decoded.

Four stages with a queue each: encode, step, preview, decode. Between two steps each of the others gets a bounded share:
one piece of work, more when a backlog has formed (or, for frames, while it takes less time than the step did), so that
no stage starves another and no backlog grows for ever.

The rules of a step:

* The **tenant** furthest behind its share of the device opens the batch (see ``fairness``); its stories rank by who
  waited too long, whose deadline is near, who needs least time for its priority and age (see ``OpenStory.rank``).
* **Riders** share the opener's key and fit the row limit and the memory; they are charged for what they use. Who would
  delay the others more than sharing saves is left out (see ``batching``).
* A waiting story is **encoded** when it would be in the next batch if it were ready. So a short story overtakes long
  ones at the next step, and no more stories hold memory than take steps or were overtaken.
* Nobody **starves**: a story left out of ``patience`` of its tenant's batches goes before all others of its tenant, the
  longest left out first, and they do not use up the tenant's share as riders of others before it; a story that waited
  ``queue_patience`` batches is let in, one a tenant at a time.

Work is never held back: ``next_work`` returns None only when there is none.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from storyloom_server.scheduler.batching import fill, worthwhile
from storyloom_server.scheduler.cost import CostCoefficients, CostModel
from storyloom_server.scheduler.fairness import FairShare
from storyloom_server.scheduler.limits import Limits
from storyloom_server.scheduler.memory import MemoryModel
from storyloom_server.scheduler.open_story import OpenStory
from storyloom_server.scheduler.stories import FINAL, Load, Status, StorySpec
from storyloom_server.scheduler.work import Decode, Encode, Preview, Step, Work

_HOLDING_STATE = (Status.ENCODING, Status.DENOISING, Status.DECODING)
"""Statuses of a story whose tensors are on the device."""

_BACKLOG_PER_PIECE = 4
"""Pieces of work that wait in a stage for each that is done between two steps."""


@dataclass(slots=True)
class _Round:
    """What may still be done of each stage before the next step."""

    encodes: int = 1
    previews: int = 1
    decodes: int = 1


class Scheduler:
    """Orders the work of one engine, which does one piece at a time and reports it before it asks for the next.

    Args:
        clock: seconds; deadlines are in its time.
    """

    def __init__(self, limits: Limits, cost: CostModel, memory: MemoryModel, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._cost = cost
        self._memory = memory
        self._clock = clock
        self._fair = FairShare(limits.debt_seconds)
        self._stories: dict[str, OpenStory] = {}
        self._by_status: dict[Status, dict[str, OpenStory]] = {status: {} for status in Status if status not in FINAL}
        self._active = Load()  # Of the stories whose states are on the device.
        self._previews: deque[str] = deque()
        self._decoding: deque[str] = deque()
        self._open: dict[str, int] = {}  # By tenant: stories that wait for steps.
        self._turns: dict[str, int] = {}  # By tenant: batches with a story of it.
        self._aged: dict[str, str] = {}  # By tenant: its story that goes first because it waited long to be let in.
        self._submitted = 0
        self._batches = 0
        self._priced_with = cost.coefficients
        self._round = _Round()

    def submit(self, spec: StorySpec) -> None:
        """Takes a story in.

        Raises:
            ValueError: the id is already known.
        """
        if spec.story_id in self._stories:
            raise ValueError(f"story {spec.story_id} was submitted twice; give every story its own id")
        self._join(spec)
        story = OpenStory.of(spec, self._submitted, now=self._clock(), batches=self._batches)
        story.price(self._prices())
        self._stories[spec.story_id] = self._by_status[Status.QUEUED][spec.story_id] = story
        self._submitted += 1

    def remove(self, story_id: str, status: Status) -> bool:
        """Takes a story out for good. False when it is not there (already gone).

        Raises:
            ValueError: ``status`` is not a final one.
        """
        if status not in FINAL:
            raise ValueError(f"a story leaves as finished, failed or cancelled, not as {status.value}")
        story = self._stories.pop(story_id, None)
        if story is None:
            return False
        if story.status is Status.DECODING:
            self._decoding.remove(story_id)
        else:
            self._leave(story)
        if story_id in self._previews:
            self._previews.remove(story_id)
        self._move(story, status)
        return True

    def next_work(self) -> Work | None:
        """The next thing to do; None when there is nothing until a story is submitted."""
        may = self._round
        if may.decodes and (decode := self._next_decode()) is not None:
            may.decodes -= 1
            return decode
        if may.previews and self._previews:
            may.previews -= 1
            return Preview(self._previews[0])
        choice = self._choose(self._ready() + self._admissible()) if may.encodes else None
        choice = choice or self._choose(self._ready()) or self._choose(self._admissible())
        if isinstance(choice, Encode):
            may.encodes = max(may.encodes - 1, 0)
            self._move(self._stories[choice.story_id], Status.ENCODING)
        return choice or self._next_preview() or self._next_decode()

    def encoded(self, story_id: str, seconds: float | None = None, *, done_steps: int | None = None) -> None:
        """The story was encoded and can take steps, or be decoded where it had taken them all before.

        ``done_steps``: those that it has in fact; None: as many as it was submitted with.
        """
        story = self._expect(story_id, Status.ENCODING)
        if done_steps is not None and story.be_at(done_steps):
            story.price(self._prices())
        if seconds is not None:
            self._cost.observe_encode(story.spec.shape, seconds)
            self._fair.charge(story.spec.tenant, seconds)
        self._move(story, Status.DENOISING)
        story.waiting_since = self._turns[story.spec.tenant]
        if story.steps_left == 0:
            self._denoised(story)

    def stepped(self, story_ids: Sequence[str], seconds: float, peak_bytes: int | None = None) -> None:
        """These stories took a step together, in the order in which they were handed out.

        Ids that are gone (failed or cancelled meanwhile) are skipped.
        """
        batch = [self._stories[story_id] for story_id in story_ids if story_id in self._stories]
        load = Load.total(story.load for story in batch)
        if len(batch) == len(story_ids):  # Otherwise the measurement belongs to a load that is not known any more.
            self._cost.observe_step(load, seconds)
            self._memory.observe_peak(load, self._active, peak_bytes)
        self._charge(batch, seconds)
        self._count_batch(batch)
        for story in batch:
            if story.be_at(story.done_steps + 1):
                story.price(self._prices())
            interval = story.spec.preview_interval
            if story.steps_left == 0:
                self._denoised(story)
            elif interval and story.done_steps % interval == 0 and story.spec.story_id not in self._previews:
                self._previews.append(story.spec.story_id)
        self._mark_aged()
        self._begin_round(seconds)

    def out_of_memory(self, story_ids: Sequence[str]) -> bool:
        """The step of these stories ran out of memory and changed nothing.

        Returns:
            True when they will be tried again in smaller batches; False when it was one alone, which cannot run.
        """
        return self._memory.out_of_memory(Load.total(self._stories[s].load for s in story_ids if s in self._stories))

    def previewed(self, story_id: str, seconds: float | None = None) -> None:
        """The preview was decoded."""
        if story_id in self._previews:
            self._previews.remove(story_id)
        if seconds is not None and story_id in self._stories:
            self._fair.charge(self._stories[story_id].spec.tenant, seconds)

    def decoded(self, story_id: str, frames: Sequence[int], seconds: float | None = None) -> bool:
        """These frames were decoded. True when they were the story's last, which also finishes and removes it."""
        story = self._expect(story_id, Status.DECODING)
        for frame in frames:
            story.frames_left.remove(frame)
        if seconds is not None:
            self._cost.observe_decode(story.spec.shape, len(frames), seconds)
            self._fair.charge(story.spec.tenant, seconds)
        if story.frames_left:
            return False
        return self.remove(story_id, Status.FINISHED)

    def expired(self) -> list[str]:
        """Ids of the stories whose deadline has passed."""
        now = self._clock()
        return [
            s.spec.story_id for s in self._stories.values() if s.spec.deadline is not None and s.spec.deadline < now
        ]

    def wait_seconds(self) -> float | None:
        """Seconds until ``next_work`` may give something that it holds back now; None: it holds nothing back."""
        return None

    def queue_positions(self) -> dict[str, int]:
        """Number of stories in front of each waiting story, as things are now: later ones may overtake it."""
        self._prices()
        ranked = self._ranked(self._by_status[Status.QUEUED].values())
        lines = [deque(ranked[tenant]) for tenant in self._fair.order(ranked)]
        order: list[OpenStory] = []
        while lines:
            order += [line.popleft() for line in lines]
            lines = [line for line in lines if line]
        return {story.spec.story_id: position for position, story in enumerate(order)}

    def status(self, story_id: str) -> Status | None:
        """The story's status, or None when it is not (or no longer) here."""
        story = self._stories.get(story_id)
        return None if story is None else story.status

    @property
    def idle(self) -> bool:
        """True when no story is here at all."""
        return not self._stories

    def _choose(self, candidates: list[OpenStory]) -> Encode | Step | None:
        """The batch that these stories should take next, or the encoding that it first needs."""
        if not candidates:
            return None
        coefficients = self._prices()
        ranked = self._ranked(candidates)
        opener = ranked[self._fair.order(ranked)[0]][0]
        room = self._memory.room(self._active)
        batch = fill(opener, ranked, self._fair, self._limits.max_rows, room, self._overdue)
        if coefficients.calibrated:
            batch = batch[: worthwhile(batch, self._impatience(), coefficients)]
        for story in batch:
            if story.status is Status.QUEUED:
                return Encode(story.spec.story_id)
        self._fair.serve(opener.spec.tenant)
        return Step(tuple(story.spec.story_id for story in batch))

    def _ranked(self, candidates: Iterable[OpenStory]) -> dict[str, list[OpenStory]]:
        """The candidates by tenant, in order of rank."""
        by_tenant: dict[str, list[OpenStory]] = {}
        for story in candidates:
            by_tenant.setdefault(story.spec.tenant, []).append(story)
        now, ranked = self._clock(), {}
        for tenant, stories in by_tenant.items():
            left_out = self._left_out(tenant)
            ranked[tenant] = [rank[-1] for rank in sorted([story.rank(now, left_out) for story in stories])]
        return ranked

    def _prices(self) -> CostCoefficients:
        """The cost model as it is now, with every story priced by it."""
        coefficients = self._cost.coefficients
        if coefficients is not self._priced_with:
            self._priced_with = coefficients
            for story in self._stories.values():
                story.price(coefficients)
        return coefficients

    def _impatience(self) -> float:
        """That of all who wait for a step."""
        waiting = (self._by_status[status].values() for status in (Status.QUEUED, Status.DENOISING))
        return sum(story.impatience for stories in waiting for story in stories)

    def _left_out(self, tenant: str) -> int:
        """The turn of a tenant since which, or before, a story of it has waited too long."""
        return self._turns[tenant] - self._limits.patience

    def _overdue(self, story: OpenStory) -> bool:
        return story.waiting_since <= self._left_out(story.spec.tenant)

    def _mark_aged(self) -> None:
        """Marks, for each tenant, its oldest waiting story once it has waited too long.

        One a tenant at a time, until it is through its steps: they must not fill the room that short stories need.
        """
        oldest: dict[str, OpenStory] = {}
        for story in self._by_status[Status.QUEUED].values():
            oldest.setdefault(story.spec.tenant, story)
        for tenant, story in oldest.items():
            if tenant not in self._aged and self._batches - story.queued_since >= self._limits.queue_patience:
                self._aged[tenant] = story.spec.story_id
                story.waiting_since = -math.inf

    def _ready(self) -> list[OpenStory]:
        return list(self._by_status[Status.DENOISING].values())

    def _admissible(self) -> list[OpenStory]:
        """Waiting stories for which there is room. One that waited too long and finds none keeps the others out."""
        found = []
        room: dict[Load, bool] = {}  # Many stories are of the same shape.
        for story in self._by_status[Status.QUEUED].values():
            fits = room.get(story.held)
            if fits is None:
                fits = room[story.held] = self._has_room(story.held)
            if fits:
                found.append(story)
            elif self._overdue(story):
                return []
        return found

    def _has_room(self, load: Load) -> bool:
        """Whether a story can become active beside the active ones."""
        active, limits = self._active, self._limits
        if active.stories == 0:
            return True
        if active.stories >= limits.max_active_stories or active.rows + load.rows > limits.max_active_rows:
            return False
        holding = (story.held for status in _HOLDING_STATE for story in self._by_status[status].values())
        return self._memory.has_room(max(*holding, load, key=_row_megapixels), active + load)

    def _move(self, story: OpenStory, status: Status) -> None:
        """Every change of a story's status goes through here."""
        story_id = story.spec.story_id
        del self._by_status[story.status][story_id]
        if status not in FINAL:
            self._by_status[status][story_id] = story
        if story.status in _HOLDING_STATE:
            self._active -= story.held
        if status in _HOLDING_STATE:
            self._active += story.held
        story.status = status

    def _next_decode(self) -> Decode | None:
        """The first frame left of the story whose turn it is; stories take turns, so that short ones come out soon."""
        if not self._decoding:
            return None
        story = self._stories[self._decoding[0]]
        self._decoding.rotate(-1)
        return Decode(story.spec.story_id, (story.frames_left[0],))

    def _next_preview(self) -> Preview | None:
        return Preview(self._previews[0]) if self._previews else None

    def _denoised(self, story: OpenStory) -> None:
        self._move(story, Status.DECODING)
        self._leave(story)
        self._decoding.append(story.spec.story_id)
        if story.spec.story_id in self._previews:  # The pictures themselves come now.
            self._previews.remove(story.spec.story_id)

    def _charge(self, batch: Sequence[OpenStory], seconds: float) -> None:
        """Divides the cost of a step among the tenants, in proportion to what their stories made it longer."""
        self._prices()
        shares = [story.marginal_seconds for story in batch]
        if not any(shares):
            shares = [story.load.row_megapixels for story in batch]
        whole = sum(shares)
        for story, share in zip(batch, shares, strict=True):
            self._fair.charge(story.spec.tenant, seconds * share / whole)

    def _count_batch(self, batch: Sequence[OpenStory]) -> None:
        """A batch is a turn of each tenant that has a story in it."""
        self._batches += 1
        for tenant in {story.spec.tenant for story in batch}:
            self._turns[tenant] += 1
        for story in batch:
            story.waiting_since = self._turns[story.spec.tenant]

    def _begin_round(self, step_seconds: float) -> None:
        """Decides what may be done before the next step. Frames may take as long as the last step did, if they are more
        than their quota: what is finished should come out."""
        decodes = 1
        if self._decoding:
            frames = sum(len(self._stories[story_id].frames_left) for story_id in self._decoding)
            shape = self._stories[self._decoding[0]].spec.shape
            frame_seconds = max(self._cost.coefficients.decode_seconds(shape, 1), 1e-6)
            decodes = max(_quota(frames), int(step_seconds / frame_seconds))
        encodes = _quota(len(self._by_status[Status.QUEUED]))
        self._round = _Round(encodes=encodes, previews=_quota(len(self._previews)), decodes=decodes)

    def _join(self, spec: StorySpec) -> None:
        """A tenant takes part in the sharing while it has stories that wait for steps."""
        if not self._open.get(spec.tenant):
            self._turns[spec.tenant] = 0
        self._fair.join(spec.tenant, spec.weight)
        self._open[spec.tenant] = self._open.get(spec.tenant, 0) + 1

    def _leave(self, story: OpenStory) -> None:
        """The story waits for no more steps."""
        tenant = story.spec.tenant
        if self._aged.get(tenant) == story.spec.story_id:
            del self._aged[tenant]
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant], self._turns[tenant]
            self._fair.leave(tenant)

    def _expect(self, story_id: str, status: Status) -> OpenStory:
        story = self._stories.get(story_id)
        if story is None:
            raise ValueError(f"story {story_id} is not here; report only work on stories that have not left")
        if story.status is not status:
            raise ValueError(f"story {story_id} is {story.status.value}, not {status.value}")
        return story


def _quota(waiting: int) -> int:
    """Pieces of a stage's work between two steps."""
    return max(1, -(-waiting // _BACKLOG_PER_PIECE))


def _row_megapixels(load: Load) -> float:
    return load.row_megapixels
