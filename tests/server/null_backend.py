"""A backend without a model: the engine process can load it by name, and a prompt's words make it misbehave.

``raise-encode``, ``raise-step``, ``raise-decode`` and ``raise-preview`` raise there; ``diverge`` goes non-finite in the
second step; ``break-load`` in the folder's name keeps it from loading. STORYLOOM_TEST_STEP_SECONDS slows its steps
down, STORYLOOM_TEST_LOAD_SECONDS its loading.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storyloom_model.jobs import StoryJob


@dataclass
class NullState:
    """Counts its steps, and remembers the most rows that took a step with it."""

    words: frozenset[str]
    seeds: tuple[int, ...]
    steps: int
    rows: int
    key: str
    size: tuple[int, int]
    step_index: int = 0
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.step_index >= self.steps


class NullBackend:
    """Each frame's picture has one colour, made of its seed."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "NullBackend":
        if "break-load" in folder.name:
            raise OSError(f"there is no model in {folder}")
        time.sleep(float(os.environ.get("STORYLOOM_TEST_LOAD_SECONDS", "0")))
        return cls(float(os.environ.get("STORYLOOM_TEST_STEP_SECONDS", "0")))

    def encode(self, job: StoryJob) -> NullState:
        words = frozenset(word for frame in job.frames for word in frame.prompt.text.split())
        _raise_if("raise-encode", words)
        return NullState(
            words=words,
            seeds=tuple(frame.seed for frame in job.frames),
            steps=job.steps,
            rows=job.rows,
            key=str(job.adapter),
            size=(job.width, job.height),
        )

    def step(self, states: Sequence[NullState]) -> None:
        time.sleep(self._step_seconds)
        for state in states:
            _raise_if("raise-step", state.words)
            state.step_index += 1
            if "diverge" in state.words and state.step_index == 2:
                state.error = "the latents are not finite"

    def decode(self, state: NullState, frames: Sequence[int]) -> NDArray[np.uint8]:
        _raise_if("raise-decode", state.words)
        width, height = state.size
        return np.stack([_colour(state.seeds[frame], height, width) for frame in frames])

    def preview(self, state: NullState, frames: Sequence[int]) -> NDArray[np.uint8]:
        _raise_if("raise-preview", state.words)
        return np.stack([_colour(state.seeds[frame], 8, 8) for frame in frames])


def _raise_if(word: str, words: frozenset[str]) -> None:
    if word in words:
        raise ValueError(f"asked to: {word}")


def _colour(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    colour = np.array([seed % 251, seed // 251 % 251, seed // 63001 % 251], dtype=np.uint8)
    return np.broadcast_to(colour, (height, width, 3))
