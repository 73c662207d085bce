"""What the engine asks of a model, and how it finds the class by name."""

import importlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from storyloom_model.jobs import StoryJob


class State(Protocol):
    """A story between its encoding and its last decoded frame."""

    @property
    def step_index(self) -> int:
        """Denoising steps done."""

    @property
    def steps(self) -> int:
        """Denoising steps in all."""

    @property
    def done(self) -> bool:
        """True after the last step."""

    @property
    def rows(self) -> int:
        """Rows of a batch step: frames times guidance branches."""

    @property
    def key(self) -> Hashable:
        """Stories of equal keys may take a step together."""

    @property
    def error(self) -> str | None:
        """Set when this story alone went wrong in a step."""


class Backend(Protocol):
    """One loaded model. Every call is pure with respect to other stories."""

    def encode(self, job: StoryJob) -> Any:
        """Starts a story; returns its ``State``."""

    def step(self, states: Sequence[Any]) -> None:
        """Advances stories of one compatibility key by one step, in place."""

    def decode(self, state: Any, frames: Sequence[int]) -> NDArray[np.uint8]:
        """Pictures of some frames, uint8 [n, height, width, 3]."""

    def preview(self, state: Any, frames: Sequence[int]) -> NDArray[np.uint8]:
        """Low-cost pictures of some unfinished frames, uint8 [n, h, w, 3]."""


def load_backend(name: str, folder: Path, device: str) -> Backend:
    """Loads a model package with the backend class ``name`` (module:class)."""
    module, _, attribute = name.partition(":")
    return cast(Backend, getattr(importlib.import_module(module), attribute).load(folder, device=device))
