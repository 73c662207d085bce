"""What the scheduler is compared with. Both take its place in the real engine as well as in the simulator."""

from __future__ import annotations

from collections.abc import Callable

from storyloom_server.scheduler import CostModel, Decode, Encode, Limits, MemoryModel, Scheduler, Status, Step, Work


class OneAtATime(Scheduler):
    """Takes one story from its encoding to its last frame, then the next, in order of arrival."""

    def next_work(self) -> Work | None:
        for story_id in self._stories:
            return self._next_of((story_id,))
        return None

    def _next_of(self, story_ids: tuple[str, ...]) -> Work | None:
        """The next work of stories that run together: all are encoded, then take their steps, then are decoded."""
        stories = [self._stories[story_id] for story_id in story_ids if story_id in self._stories]
        for story in stories:
            if story.status is Status.QUEUED:
                self._move(story, Status.ENCODING)
                return Encode(story.spec.story_id)
        stepping = tuple(story.spec.story_id for story in stories if story.status is Status.DENOISING)
        if stepping:
            return Step(stepping)
        for story in stories:
            return Decode(story.spec.story_id, (story.frames_left[0],))
        return None


class RequestBatching(OneAtATime):
    """Dynamic batching of whole requests, as inference servers do it: gathers, then runs the batch to its end.

    The oldest waiting story and the compatible ones behind it, up to the row limit, start together once no more would
    fit or the oldest has waited ``max_delay`` seconds. A batch in which another cannot start any more goes first.

    Args:
        mix_steps: stories of different step counts may share a batch, and leave its steps as they finish. (Servers that
            call a pipeline once for the batch cannot do that.)
        max_batch_rows: rows of a batch; those of ``limits`` by default.
    """

    def __init__(
        self,
        limits: Limits,
        cost: CostModel,
        memory: MemoryModel,
        clock: Callable[[], float],
        *,
        max_delay: float = 0.05,
        mix_steps: bool = False,
        max_batch_rows: int | None = None,
    ) -> None:
        super().__init__(limits, cost, memory, clock)
        self._max_delay = max_delay
        self._mix_steps = mix_steps
        self._max_batch_rows = max_batch_rows or limits.max_rows
        self._running: tuple[str, ...] = ()

    def next_work(self) -> Work | None:
        self._running = tuple(story_id for story_id in self._running if story_id in self._stories)
        if not self._running:
            now = self._clock()
            self._running = next((batch for batch, start in self._gathered() if start <= now), ())
        return self._next_of(self._running)

    def wait_seconds(self) -> float | None:
        starts = [start for _, start in self._gathered()]
        return max(min(starts) - self._clock(), 0.0) if starts and not self._running else None

    def _gathered(self) -> list[tuple[tuple[str, ...], float]]:
        """Batches that could start, the one with the oldest story first, and when each may."""
        batches: dict[object, list[str]] = {}
        rows: dict[object, int] = {}
        full = set()
        for story_id, story in self._stories.items():
            key = (story.spec.key, None if self._mix_steps else story.spec.shape.steps)
            if key in rows and rows[key] + story.load.rows > self._max_batch_rows:
                full.add(key)  # Order is kept: who does not fit waits for the next batch, and those behind do too.
            if key not in full:
                batches.setdefault(key, []).append(story_id)
                rows[key] = rows.get(key, 0) + story.load.rows
                if rows[key] >= self._max_batch_rows:
                    full.add(key)
        return [
            (tuple(batch), 0.0 if key in full else self._stories[batch[0]].submitted + self._max_delay)
            for key, batch in batches.items()
        ]
