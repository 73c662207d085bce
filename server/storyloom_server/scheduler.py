"""Which stories take the next denoising step together: lists and numbers, no tensors and no wire.

A story waits in one first-in-first-out queue, is encoded, denoised step by step beside other stories, decoded frame by
frame, and leaves. Three rules decide everything:

* **Admission**: the head of the queue starts while the active stories' rows do not yet fill a batch step. So a step has
  enough rows to be full, and at most one story more than that holds memory.
* **Batching**: the least recently stepped story opens the batch; other stories of its compatibility key that still fit
  join it, again least recently stepped first. The story left out longest always opens the next batch, so with ``n``
  active stories nobody waits more than ``n`` batches. A story is never split; one larger than the row limit runs alone.
* **Decoding**: stories that finished denoising are decoded in the order in which they finished.
"""

import enum
import itertools
from collections.abc import Hashable
from dataclasses import dataclass

# Frames waiting to be decoded for each frame decoded between two steps. A larger backlog is worked off faster, so that
# it cannot grow without end when steps are long and stories are short.
_BACKLOG_PER_DECODE = 8


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


@dataclass(slots=True)
class ScheduledStory:
    """What the scheduler knows of a story.

    ``rows`` is its share of a batch step (frames times guidance branches), ``frames`` the pictures to decode,
    ``last_stepped`` the number of the last batch that it was in (or the one before it became ready).
    """

    story_id: str
    rows: int
    frames: int
    status: Status = Status.QUEUED
    key: Hashable = None
    last_stepped: int = 0
    frames_decoded: int = 0


class Scheduler:
    """Orders the stories of one engine.

    Args:
        max_rows: rows of one batch step, at least 1.

    Raises:
        ValueError: ``max_rows`` is below 1.
    """

    def __init__(self, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; set it to 1 or more")
        self._max_rows = max_rows
        self._stories: dict[str, ScheduledStory] = {}
        self._batches = 0

    def submit(self, story_id: str, *, rows: int, frames: int) -> int:
        """Puts a story at the end of the queue and returns the number of stories in front of it.

        Raises:
            ValueError: the id is already known, or the story has no rows or frames.
        """
        if story_id in self._stories:
            raise ValueError(f"story {story_id} was submitted twice; give every story its own id")
        if rows < 1 or frames < 1:
            raise ValueError(f"story {story_id} has {rows} rows and {frames} frames; both must be 1 or more")
        position = len(self._in_status(Status.QUEUED))
        self._stories[story_id] = ScheduledStory(story_id, rows=rows, frames=frames)
        return position

    def admit(self) -> str | None:
        """Moves the head of the queue to encoding and returns its id; None when nothing waits or there is no room."""
        head = next(iter(self._in_status(Status.QUEUED)), None)
        if head is None or self._active_rows() >= self._max_rows:
            return None
        head.status = Status.ENCODING
        return head.story_id

    def encoded(self, story_id: str, *, key: Hashable, rows: int) -> None:
        """The story can be stepped from now on, with stories of the same ``key``, and takes ``rows`` of a batch."""
        story = self._expect(story_id, Status.ENCODING)
        story.key = key
        story.rows = rows
        story.last_stepped = self._batches
        story.status = Status.DENOISING

    def next_batch(self) -> tuple[str, ...]:
        """Ids of the stories that take the next step together; empty when none can. Counts them as stepped."""
        ready = sorted(self._in_status(Status.DENOISING), key=lambda story: story.last_stepped)
        if not ready:
            return ()
        opener, others = ready[0], ready[1:]
        batch = [opener]
        free_rows = self._max_rows - opener.rows
        for story in others:
            if story.key == opener.key and story.rows <= free_rows:
                batch.append(story)
                free_rows -= story.rows
        self._batches += 1
        for story in batch:
            story.last_stepped = self._batches
        return tuple(story.story_id for story in batch)

    def denoised(self, story_id: str) -> None:
        """The story took its last step; its frames wait to be decoded, behind those of stories already waiting."""
        story = self._expect(story_id, Status.DENOISING)
        story.status = Status.DECODING
        self._stories[story_id] = self._stories.pop(story_id)

    def next_frames(self) -> list[tuple[str, int]]:
        """(story id, frame index) of the frames to decode before the next step: one, more when a backlog has formed."""
        waiting = [
            (story.story_id, index)
            for story in self._in_status(Status.DECODING)
            for index in range(story.frames_decoded, story.frames)
        ]
        quota = max(1, len(waiting) // _BACKLOG_PER_DECODE)
        return list(itertools.islice(waiting, quota))

    def frame_decoded(self, story_id: str) -> bool:
        """Counts one decoded frame; True when it was the story's last, which also finishes and removes the story."""
        story = self._expect(story_id, Status.DECODING)
        story.frames_decoded += 1
        if story.frames_decoded < story.frames:
            return False
        self.remove(story_id, Status.FINISHED)
        return True

    def remove(self, story_id: str, status: Status) -> ScheduledStory | None:
        """Takes a story out for good, with the final ``status``. None when it is not there (already gone)."""
        if status not in FINAL:
            raise ValueError(f"a story leaves as finished, failed or cancelled, not as {status.value}")
        story = self._stories.pop(story_id, None)
        if story is not None:
            story.status = status
        return story

    def queue_positions(self) -> dict[str, int]:
        """Number of stories in front of each waiting story, in queue order."""
        return {story.story_id: position for position, story in enumerate(self._in_status(Status.QUEUED))}

    def status(self, story_id: str) -> Status | None:
        """The story's status, or None when it is not (or no longer) here."""
        story = self._stories.get(story_id)
        return None if story is None else story.status

    @property
    def idle(self) -> bool:
        """True when no story is here at all."""
        return not self._stories

    @property
    def rows_in_use(self) -> int:
        """Rows of the stories that are being encoded or denoised."""
        return self._active_rows()

    def _active_rows(self) -> int:
        return sum(
            story.rows for story in self._stories.values() if story.status in (Status.ENCODING, Status.DENOISING)
        )

    def _in_status(self, status: Status) -> list[ScheduledStory]:
        return [story for story in self._stories.values() if story.status is status]

    def _expect(self, story_id: str, status: Status) -> ScheduledStory:
        story = self._stories[story_id]
        if story.status is not status:
            raise ValueError(f"story {story_id} is {story.status.value}, not {status.value}")
        return story
