"""What the engine process starts with: plain values that pickle."""

from dataclasses import dataclass
from pathlib import Path

from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import StoryJob
from storyloom_server.scheduler import Limits


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve: its name, its package folder, and the small story that warms it up."""

    name: str
    folder: Path
    warm_up: StoryJob


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Everything the engine process needs to know at its start. ``threads`` None: as many as there are cores.

    ``backend`` is a name as ``load_backend`` takes it, ``scheduler`` a class as module:class.
    """

    models: tuple[ModelSpec, ...]
    backend: str | None
    scheduler: str
    device: str
    execution: ExecutionOptions
    limits: Limits
    threads: int | None
    log_level: str
    log_format: str
    log_prompts: bool
