"""What a server knows of stories and characters, and what a caller says about the making of a story."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from storyloom._events import Done, FrameDone
from storyloom._story import Story


class Priority(enum.StrEnum):
    """Shares the device among the stories of one tenant: a higher one is served sooner, a lower one never starves."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class OnDisconnect(enum.StrEnum):
    """What happens to a story when the call that made it ends before the story does."""

    FINISH = "finish"
    CANCEL = "cancel"


class StoryState(enum.StrEnum):
    """Where a story is in its life; the last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the story."""
        return self in (StoryState.FINISHED, StoryState.FAILED, StoryState.CANCELLED)


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """Why a story failed.

    :ivar code: name of the gRPC status that a call which watches the story ends with.
    :ivar reason: short constant name of the cause.
    """

    code: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class StoryRecord:
    """All that a server knows of a story.

    :ivar state: None for a state that this version does not know.
    :ivar story: as it was asked for, with every default filled in.
    :ivar frames: those that are done, in their order, with sequence 0. In a list there are none; where pictures were
        not asked for, their `picture.png` is empty.
    :ivar created: with a time zone, as are the other times; None where it is not so far or was not said.
    :ivar expires: when the server forgets the story.
    :ivar parent_id: the story that this one extends, or redoes a frame of; empty for none.
    :ivar last_sequence: of the newest event.
    :ivar failure: set if the story failed.
    :ivar done: set if the story is finished.
    """

    story_id: str
    state: StoryState | None
    story: Story
    frames: tuple[FrameDone, ...] = ()
    created: datetime | None = None
    finished: datetime | None = None
    expires: datetime | None = None
    parent_id: str = ""
    last_sequence: int = 0
    failure: FailureRecord | None = None
    done: Done | None = None


@dataclass(frozen=True, slots=True)
class DiscoveryLoop:
    """How one loop of a discovery found looks in its candidates, the frames of a story.

    :ivar compared: frames that show enough of somebody.
    :ivar kept: frames that agree best.
    :ivar nearest: the one of these that is nearest to their mean.
    """

    story_id: str
    compared: tuple[int, ...]
    kept: tuple[int, ...]
    nearest: int


@dataclass(frozen=True, slots=True)
class CharacterRecord:
    """A character that the server keeps. ``Character(id=record.character_id)`` puts it into a story.

    :ivar references: number of reference pictures.
    :ivar reference_notes: what their check noted, for people.
    :ivar references_encoded: the first story with the character need not wait for that.
    :ivar discovery: how a discovery found it, loop by loop; only in what `StoryClient.discover_character` returns where
        no earlier call with its request id did.
    """

    character_id: str
    name: str
    description: str
    references: int
    created: datetime | None = None
    reference_notes: tuple[str, ...] = ()
    references_encoded: bool = False
    discovery: tuple[DiscoveryLoop, ...] = ()
