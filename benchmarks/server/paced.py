"""A backend that computes nothing and takes as long as a simulated device would: a GPU in a server without one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.server.workloads import SUBLINEAR
from storyloom_model.jobs import StoryJob
from storyloom_server.scheduler import StoryShape
from tests.server.null_backend import NullBackend, NullState

# Twice as fast, so that twice as many stories fit into the time of a run.
DEVICE = replace(
    SUBLINEAR,
    source=f"half the times of: {SUBLINEAR.source}",
    times=tuple(seconds / 2 for seconds in SUBLINEAR.times),
    encode=SUBLINEAR.encode / 2,
    decode=SUBLINEAR.decode / 2,
)


class PacedBackend(NullBackend):
    """Sleeps for the time of ``DEVICE`` wherever a model would compute."""

    def encode(self, job: StoryJob) -> NullState:
        time.sleep(DEVICE.encode)
        return super().encode(job)

    def step(self, states: Sequence[NullState]) -> None:
        time.sleep(DEVICE.step([_shape(state.job) for state in states]))
        super().step(states)

    def decode(self, state: NullState, frames: Sequence[int]) -> NDArray[np.uint8]:
        time.sleep(DEVICE.decode * len(frames))
        return super().decode(state, frames)


def _shape(job: StoryJob) -> StoryShape:
    return StoryShape(len(job.frames), 2 if job.guided else 1, DEVICE.pixels, job.steps)
