"""A backend without a model: the engine process can load it by name, and a prompt's words make it misbehave.

``raise-encode``, ``raise-step``, ``raise-decode`` and ``raise-preview`` raise there; ``diverge`` goes non-finite in the
second step; ``die-encode``, ``die-step`` and ``die-decode`` kill the process, ``hang`` makes its second step last for
ever; ``break-load`` in the folder's name keeps it from loading. STORYLOOM_TEST_STEP_SECONDS slows its steps down,
STORYLOOM_TEST_LOAD_SECONDS its loading, which also waits for the file STORYLOOM_TEST_LOAD_GATE to be there; steps of
over STORYLOOM_TEST_MEMORY_ROWS rows run out of memory. A package whose manifest names encoders has a ``null_encoder``.
A second pass misses the characters of a frame with ``hidden-from-N`` in its prompt whose seed is below N.
"""

import json
import os
import signal
import time
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import StoryJob
from storyloom_model.package import MANIFEST_FILE
from storyloom_model.step_rows import total_steps
from tests.server.null_encoder import NullEncoder


@dataclass
class NullState:
    """Counts its steps. ``colour`` changes with each, so that a step left out or taken twice shows in the picture."""

    job: StoryJob
    words: frozenset[str]
    colours: list[int]
    step_index: int = 0
    error: str | None = None

    @property
    def steps(self) -> int:
        return total_steps(self.job)

    @property
    def done(self) -> bool:
        return self.step_index >= self.steps


class NullBackend:
    """Each frame's picture has one colour, made of its seed, its anchors, its characters' looks, its
    pose and its steps.
    """

    def __init__(self, step_seconds: float, reference_encoder: NullEncoder | None = None) -> None:
        self.reference_encoder = reference_encoder
        self._step_seconds = step_seconds
        self._memory_rows = int(os.environ.get("STORYLOOM_TEST_MEMORY_ROWS", "1000000"))

    @classmethod
    def load(cls, folder: Path, device: str, options: ExecutionOptions) -> "NullBackend":
        if "break-load" in folder.name:
            raise OSError(f"there is no model in {folder}")
        time.sleep(float(os.environ.get("STORYLOOM_TEST_LOAD_SECONDS", "0")))
        gate = os.environ.get("STORYLOOM_TEST_LOAD_GATE")
        while gate and not Path(gate).exists():
            time.sleep(0.02)
        manifest = folder / MANIFEST_FILE
        encodes = manifest.is_file() and "encoders:" in manifest.read_text()
        return cls(float(os.environ.get("STORYLOOM_TEST_STEP_SECONDS", "0")), NullEncoder() if encodes else None)

    def encode(self, job: StoryJob) -> NullState:
        words = frozenset(word for frame in job.frames for word in frame.prompt.text.split())
        _misbehave("encode", words)
        assert all(identity.character in job.characters for identity in job.identities)
        lent = sum(sum(anchor.latents) for anchor in job.anchors)
        looks = sum(zlib.crc32(repr(identity).encode()) for identity in job.identities)
        looks += zlib.crc32(repr(job.loras).encode()) if job.loras else 0
        looks += zlib.crc32(repr(job.redenoising).encode()) if job.redenoising is not None else 0
        poses = [zlib.crc32(repr(frame.control).encode()) if frame.control else 0 for frame in job.frames]
        colours = [frame.seed + lent + looks + pose for frame, pose in zip(job.frames, poses, strict=True)]
        return NullState(job, words, colours)

    def variant(self, job: StoryJob) -> Hashable:
        """An adapter called "changing" has its own weights."""
        changing = bool(job.identities) and job.identity_adapter == "changing"
        return (job.adapter, changing, job.loras)

    def step(self, states: Sequence[NullState]) -> None:
        time.sleep(self._step_seconds)
        if sum(state.job.rows for state in states) > self._memory_rows:
            raise MemoryError("the batch is too large")
        for state in states:
            _misbehave("step", state.words)
        for state in states:
            state.step_index += 1
            state.colours = [colour * 31 + state.step_index for colour in state.colours]
            if "hang" in state.words and state.step_index == 2:
                time.sleep(1e6)
            if "diverge" in state.words and state.step_index == 2:
                state.error = "the latents are not finite"

    def decode(self, state: NullState, frames: Sequence[int]) -> NDArray[np.uint8]:
        _misbehave("decode", state.words)
        return np.stack([_fill(state.colours[frame], state.job.height, state.job.width) for frame in frames])

    def preview(self, state: NullState, frames: Sequence[int]) -> NDArray[np.uint8]:
        _misbehave("preview", state.words)
        return np.stack([_fill(state.colours[frame], 8, 8) for frame in frames])

    def save(self, state: NullState) -> bytes:
        return json.dumps([state.step_index, state.colours]).encode()

    def restore(self, job: StoryJob, data: bytes) -> NullState:
        state = self.encode(job)
        state.step_index, state.colours = json.loads(data)
        return state

    def final_latents(self, state: NullState) -> list[bytes]:
        return [(colour % 2**32).to_bytes(4, "little") for colour in state.colours]

    def looks(self, state: NullState, frame: int, picture: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        look = np.bincount(picture[0, 0] // 64, minlength=4) / 3
        return dict.fromkeys(state.job.frames[frame].prompt.spans, look.astype(np.float32))

    def missing(self, state: NullState, frame: int) -> Sequence[str]:
        shown = state.job.frames[frame]
        hidden = [word for word in shown.prompt.text.split() if word.startswith("hidden-from-")]
        if state.job.redenoising is None or not any(shown.seed < int(word.rpartition("-")[2]) for word in hidden):
            return ()
        return [region.character for region in state.job.redenoising.regions if region.character in shown.prompt.spans]

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def take_peak_bytes(self) -> int | None:
        return None

    def memory_bytes(self) -> int | None:
        return None


def _misbehave(stage: str, words: frozenset[str]) -> None:
    if f"raise-{stage}" in words:
        raise ValueError(f"asked to: raise in {stage}")
    if f"die-{stage}" in words:
        os.kill(os.getpid(), signal.SIGKILL)


def _fill(value: int, height: int, width: int) -> NDArray[np.uint8]:
    colour = np.array([value % 251, value // 251 % 251, value // 63001 % 251], dtype=np.uint8)
    return np.broadcast_to(colour, (height, width, 3))
