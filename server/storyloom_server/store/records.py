"""What goes into the store and comes out of it: frozen dataclasses. Payloads are serialised messages, opaque here."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar


class StoryState(StrEnum):
    """Where a story is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether the story is still to be worked on."""
        return self in OPEN_STATES


OPEN_STATES = (StoryState.QUEUED, StoryState.RUNNING)
ENDED_STATES = (StoryState.FINISHED, StoryState.FAILED, StoryState.CANCELLED)


class ArtifactKind(StrEnum):
    """What a blob of a story is. Checkpoints are deleted soon after the story has ended, and so are references, which
    are what the encoder says of pictures of rounds; the others with the story.
    """

    PICTURE = "picture"
    LATENTS = "latents"
    CHECKPOINT = "checkpoint"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Features:
    """What encoders made of a character's references.

    ``digest`` is of the pictures and ``encoders`` the fingerprint of what made ``data`` of them; ``notes`` are for
    people.
    """

    digest: str
    encoders: str
    data: bytes
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoryFeatures:
    """Features of a character of a story; ``blended``: those of the other character that is mixed in."""

    name: str
    blended: bool
    features: Features


@dataclass(frozen=True, slots=True)
class NewStory:
    """A story to accept. ``request_digest`` tells two requests with one ``request_id`` apart."""

    id: str
    tenant: str
    request: bytes
    request_digest: str
    model: str
    frames: int
    request_id: str | None = None
    title: str = ""
    priority: int = 0
    deadline_at: float | None = None
    expires_at: float | None = None
    parent_id: str | None = None
    features: tuple[StoryFeatures, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """A story as it is now, without its request. ``life`` says which run of which server owns it."""

    id: str
    tenant: str
    request_id: str | None
    title: str
    model: str
    state: StoryState
    frames: int
    priority: int
    deadline_at: float | None
    parent_id: str | None
    created_at: float
    updated_at: float
    finished_at: float | None
    expires_at: float | None
    replica: str
    life: str
    lease_until: float
    crashes: int
    sequence_reserved: int
    cancel_requested: bool
    size_bytes: int
    error: bytes | None
    summary: bytes | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to an accepted story. ``existing``: the same request had been accepted before."""

    story: Story
    existing: bool


@dataclass(frozen=True, slots=True)
class Artifact:
    """A blob of a story: ``position`` is the frame index of a picture, for example."""

    key: str
    kind: ArtifactKind
    position: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A durable event. Its picture, if it has one, lies in blob storage already."""

    sequence: int
    payload: bytes
    picture: Artifact | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A stored event. ``picture`` is the key of its blob."""

    sequence: int
    payload: bytes
    picture: str | None


@dataclass(frozen=True, slots=True)
class Renewal:
    """What happened to the stories that a server works on: some are its own no more, some are to be cancelled."""

    lost: frozenset[str]
    cancelled: frozenset[str]


@dataclass(frozen=True, slots=True)
class EndedStory:
    """What retention needs to know of a story."""

    id: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewCharacter:
    """A character to keep."""

    id: str
    tenant: str
    name: str
    description: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Character:
    """A kept character, without its payload."""

    id: str
    tenant: str
    name: str
    description: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has: the size of its stories and characters, and numbers of stories."""

    size_bytes: int
    stories: int
    open_stories: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may have; None: as much as it likes."""

    size_bytes: int | None = None
    open_stories: int | None = None


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a list, newest first. ``next_token`` is "" on the last page."""

    items: Sequence[Item]
    next_token: str
