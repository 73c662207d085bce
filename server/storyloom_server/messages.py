"""What the service and the engine process say to each other: frozen dataclasses of plain values that pickle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from storyloom_model.jobs import StoryJob

# Service to engine


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate this story. ``preview_interval`` is the number of steps between previews (0: none)."""

    story_id: str
    model: str
    job: StoryJob
    preview_interval: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this story any more. An unknown or finished id is no error."""

    story_id: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Leave now. Stories that are still open are dropped."""


ToEngine: TypeAlias = Submit | Cancel | Shutdown


# Engine to service


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture: ``height * width * 3`` bytes of RGB, row by row from the top."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """Every model is loaded and has made a warm-up story."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A model could not be loaded or warmed up; the engine process ends."""

    message: str


@dataclass(frozen=True, slots=True)
class QueueMoved:
    """Stories in front of each waiting story."""

    positions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EncodingStarted:
    """The story left the queue."""

    story_id: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """The story has done ``step`` of ``steps`` denoising steps; 0 right after encoding."""

    story_id: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Preview:
    """Low-cost pictures of every frame after ``step`` steps."""

    story_id: str
    step: int
    frames: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True)
class DecodingStarted:
    """The story took its last step."""

    story_id: str


@dataclass(frozen=True, slots=True)
class FrameDone:
    """The picture of one frame."""

    story_id: str
    frame_index: int
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class StoryFinished:
    """Every frame is done. Wall-clock seconds of each stage."""

    story_id: str
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class StoryFailed:
    """This story alone went wrong. ``reason`` is an UPPER_SNAKE name."""

    story_id: str
    reason: str
    message: str


# Made on the service's side of the pipe


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Stories in front of this waiting one."""

    story_id: str
    position: int


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine process is gone: every open story gets this."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """The server stops before this story was done."""


FromEngine: TypeAlias = (
    Ready
    | StartFailed
    | QueueMoved
    | EncodingStarted
    | Stepped
    | Preview
    | DecodingStarted
    | FrameDone
    | StoryFinished
    | StoryFailed
)
ToReader: TypeAlias = (
    QueuePosition
    | EncodingStarted
    | Stepped
    | Preview
    | DecodingStarted
    | FrameDone
    | StoryFinished
    | StoryFailed
    | EngineLost
    | Dropped
)
