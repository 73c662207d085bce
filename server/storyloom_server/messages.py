"""What the service and the engine process say to each other: frozen dataclasses of plain values that pickle.

The engine's unit of work is the **job**: a story, or one window of a long one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from storyloom_model.identity.features import Reference
from storyloom_model.jobs import StoryJob
from storyloom_server.scheduler import CostCoefficients, Priority

# Service to engine


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How a job shares the device.

    ``deadline`` in seconds of the system's monotonic clock. ``alone``: it takes its steps with no other job, since it
    may be what killed the engine.
    """

    tenant: str = ""
    weight: float = 1.0
    priority: Priority = Priority.NORMAL
    deadline: float | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Submit:
    """Do this job.

    ``preview_interval`` and ``checkpoint_interval`` are steps between previews and checkpoints (0: none), and
    ``checkpoint_seconds`` the least seconds between checkpoints.
    ``checkpoint`` is what an earlier engine process sent for the same job; ``done_steps`` are the steps in it.
    ``reads`` names a field of ``ReferenceFeatures``, which the image encoder then says of every finished picture; "":
    it says nothing.
    """

    job_id: str
    model: str
    job: StoryJob
    scheduling: Scheduling = Scheduling()
    preview_interval: int = 0
    checkpoint_interval: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint: bytes | None = None
    done_steps: int = 0
    reads: str = ""


@dataclass(frozen=True, slots=True)
class EncodeReferences:
    """Say what is in these pictures of one character. ``job_id`` is as one of a job, for ``Cancel``."""

    job_id: str
    model: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this job any more. An unknown or finished id is no error."""

    job_id: str


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Load a package, and take ``warm_up`` through it. A model that is loaded is only warmed up."""

    name: str
    folder: Path
    warm_up: StoryJob


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Forget a model. The service sends it when no job needs the model any more."""

    name: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Leave now. Jobs that are still open are dropped."""


ToEngine: TypeAlias = Submit | EncodeReferences | Cancel | LoadModel | UnloadModel | Shutdown


# Engine to service


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture: ``height * width * 3`` bytes of RGB, row by row from the top."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """Every model is loaded and has made warm-up stories. ``coefficients``: what these cost. ``encoders``: fingerprints
    of the encoders of those models that take references.
    """

    seconds: float
    coefficients: CostCoefficients
    encoders: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A model could not be loaded or warmed up; the engine process ends."""

    message: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The loop is alive. Sent at least every second between two pieces of work."""


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The answer to ``LoadModel``; ``error`` is empty if all is well. ``encoders`` as in ``Ready``, "" for none."""

    name: str
    seconds: float
    error: str = ""
    encoders: str = ""


@dataclass(frozen=True, slots=True)
class ReferencesBegun:
    """References are being encoded: should the process die now, they may be the cause."""

    job_id: str


@dataclass(frozen=True, slots=True)
class ReferencesEncoded:
    """The answer to ``EncodeReferences``.

    ``features`` are ``IdentityFeatures.to_bytes()``; empty if there are ``problems``, or an ``error`` of the model's
    own. ``problems`` and ``notes`` are by the reference's index. ``seconds`` of work, without waiting.
    """

    job_id: str
    features: bytes
    encoders: str
    notes: tuple[tuple[int, str], ...]
    problems: tuple[tuple[int, str], ...]
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class QueueMoved:
    """Jobs in front of each waiting job."""

    positions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BatchStepped:
    """One batch step: the step that each of its jobs has done now, and what metrics and the service's copy of the cost
    model need. One message for all jobs: one for each would cost more than the rest of the loop.

    ``peak_bytes`` of device memory, where the device counts them. ``largest_story`` in row-megapixels: a larger one
    would not fit the device; None while that is not known.
    """

    steps: Mapping[str, int]
    seconds: float
    rows: int
    jobs: int
    width: int
    height: int
    peak_bytes: int | None
    coefficients: CostCoefficients
    largest_story: float | None

    def by_job(self) -> "Iterator[Stepped]":
        """What happened to each of the jobs."""
        for job_id, step in self.steps.items():
            yield Stepped(job_id, step, self.seconds, self.rows, self.jobs)


@dataclass(frozen=True, slots=True)
class EncodingStarted:
    """The job left the queue."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """The job has done ``step`` of its denoising steps; 0 right after encoding.

    ``seconds``, ``batch_rows`` and ``batch_jobs`` are those of the batch step.
    """

    job_id: str
    step: int
    seconds: float = 0.0
    batch_rows: int = 0
    batch_jobs: int = 0


@dataclass(frozen=True, slots=True)
class Preview:
    """Low-cost pictures of every frame after ``step`` steps."""

    job_id: str
    step: int
    frames: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What another engine process needs to go on after ``step`` steps."""

    job_id: str
    step: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DecodingStarted:
    """The job took its last step."""

    job_id: str


@dataclass(frozen=True, slots=True)
class FrameDone:
    """One finished frame: its picture, its final latents, and the look of each of its characters, by name.

    ``seen`` is what the image encoder says of the picture, where ``Submit.reads`` asks for it:
    ``IdentityFeatures.to_bytes()``.

    See ``storyloom_model.jobs.AnchorFrame`` for the latents and ``storyloom_model.consistency`` for the looks.
    ``missing`` are characters to whom re-denoising gave nothing, since they were not found in it.
    """

    job_id: str
    frame_index: int
    pixels: Pixels
    latents: bytes
    looks: Mapping[str, bytes]
    missing: tuple[str, ...] = ()
    seen: bytes = b""


@dataclass(frozen=True, slots=True)
class JobFinished:
    """Every frame is done. Wall-clock seconds of each stage."""

    job_id: str
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class JobFailed:
    """This job alone went wrong. ``reason`` is an UPPER_SNAKE name."""

    job_id: str
    reason: str
    message: str


JobMessage: TypeAlias = (
    EncodingStarted | Stepped | Preview | Checkpoint | DecodingStarted | FrameDone | JobFinished | JobFailed
)
ReferenceMessage: TypeAlias = ReferencesBegun | ReferencesEncoded
FromEngine: TypeAlias = (
    Ready | StartFailed | Beat | ModelLoaded | QueueMoved | BatchStepped | ReferenceMessage | JobMessage
)


# Made on the service's side of the pipe


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Jobs in front of this waiting one."""

    job_id: str
    position: int


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine process is gone, and the job with it. ``suspect``: it had left the queue, so it may be the cause."""

    suspect: bool


ToRun: TypeAlias = QueuePosition | JobMessage | EngineLost
