"""What happens to a story, in the order of happening: accepted, progress, previews, frames, done."""

from __future__ import annotations

import enum
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from storyloom._poses import ControlKind
from storyloom._references import Keep
from storyloom._story import Settings, Solver


class Stage(enum.StrEnum):
    """What the server is doing with a story."""

    QUEUED = "queued"
    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"


@dataclass(frozen=True, slots=True)
class Picture:
    """A complete PNG file and its size in pixels."""

    png: bytes
    width: int
    height: int

    def open(self) -> Image.Image:
        """Returns the decoded picture.

        :raises PIL.UnidentifiedImageError: when the bytes are not a PNG file.
        """
        with Image.open(io.BytesIO(self.png), formats=["PNG"]) as image:
            image.load()
            return image.copy()


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock seconds."""

    queued: float
    encode: float
    denoise: float
    decode: float
    total: float


@dataclass(frozen=True, slots=True)
class _Event:
    """
    :ivar story_id: given by the server.
    :ivar sequence: starts at 1 and rises with every event of the story. Numbers may be left out where progress or
        previews were.
    """

    story_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Accepted(_Event):
    """The story passed every check and is in the queue.

    :ivar settings: with every default filled in.
    :ivar queue_position: stories in front of this one.
    :ivar frame_seeds: one for each frame, in order.
    :ivar reference_notes: what the check of the references noted, for people.
    """

    settings: Settings
    queue_position: int
    frame_seeds: tuple[int, ...]
    reference_notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress(_Event):
    """The story moved on; every frame of it has done the same number of steps.

    :ivar stage: None for a stage that this version does not know.
    :ivar queue_position: stories in front of this one, while it is queued.
    """

    stage: Stage | None
    step: int
    steps: int
    queue_position: int


@dataclass(frozen=True, slots=True)
class Preview(_Event):
    """A rough picture of a frame, as it is after `step` denoising steps."""

    frame_index: int
    step: int
    picture: Picture


@dataclass(frozen=True, slots=True)
class FrameDone(_Event):
    """A finished frame.

    :ivar prompt: the text that the model was given, with descriptions filled in.
    :ivar reused: taken over from the story that this one extends or redoes a frame of.
    :ivar finished_seconds: from the story's acceptance to this picture.
    :ivar safety_flag: what the server's checks found in the frame's prompt and picture; empty for nothing, or where
        there is no check.
    :ivar missing_characters: those with references whom the second pass of `Redenoising` did not find in the picture.
    """

    frame_index: int
    picture: Picture
    seed: int
    prompt: str
    reused: bool = False
    finished_seconds: float = 0.0
    safety_flag: str = ""
    missing_characters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done(_Event):
    """Every frame is finished; no event follows.

    :ivar consistency: how much each character agrees with itself across the frames, from 0 to 1: its colours, averaged
        over pairs of frames. It says nothing of faces. Only characters in two frames or more.
    """

    timings: Timings
    consistency: Mapping[str, float] = field(default_factory=dict)


StoryEvent = Accepted | Progress | Preview | FrameDone | Done


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a model accepts in one story.

    :ivar max_prompt_tokens: of one frame's full prompt, style and descriptions included.
    :ivar max_references: of one character.
    :ivar max_request_bytes: of a message to this server, pictures included; 0 where it does not say.
    """

    max_frames: int
    max_characters: int
    max_steps: int
    max_prompt_tokens: int
    max_references: int = 0
    max_request_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model.

    :ivar is_default: used when a story names no model.
    :ivar sizes: (width, height) in pixels.
    :ivar defaults: used where a story sets nothing.
    :ivar adapters: names accepted in `Consistency.adapter`.
    :ivar identity_adapters: names accepted in `Settings.identity_adapter`, beside ``"none"``, and what each can take
        over from references. Empty: the model takes no references.
    :ivar loras: names accepted in `Settings.loras`.
    :ivar methods: story methods accepted in `Consistency.method`.
    :ivar controlnets: names accepted in `Pose.controlnet`, the one that an empty name means first, and what each is
        shown; None for a kind that this version does not know. Empty: the model takes no poses.
    :ivar discovery: of `defaults`, those that are others for the candidates of a discovery.
    :ivar discovery_negative_prompt: of candidates, where a request brings none.
    :ivar character_finder: whether `Redenoising` looks for characters by their words, so that one may be missing.
    """

    name: str
    description: str
    is_default: bool
    sizes: tuple[tuple[int, int], ...]
    defaults: Settings
    limits: Limits
    solvers: tuple[Solver, ...]
    adapters: tuple[str, ...]
    identity_adapters: Mapping[str, tuple[Keep, ...]] = field(default_factory=dict)
    loras: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    controlnets: Mapping[str, ControlKind | None] = field(default_factory=dict)
    discovery: Settings = field(default_factory=Settings)
    discovery_negative_prompt: str = ""
    character_finder: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a server answers (`alive`) and whether it takes stories now (`ready`)."""

    alive: bool
    ready: bool
