"""A small story of two characters: what exports are verified with, and what layers are calibrated on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.noise import frame_seed
from storyloom_model.package import ModelPackage
from storyloom_model.prompts import ComposedPrompt, compose

_CAST = {"mia": "a girl with red hair", "leo": "an old man with a beard"}
_PROMPTS = ("{mia} in a park", "{mia} and {leo} at a lake", "{leo} in a garden")


def sample_job(package: ModelPackage, steps: int, adapter: str | None = None) -> StoryJob:
    """Three frames with a package's defaults.

    Args:
        package: which.
        steps: of the solver.
        adapter: None: the package's default one.
    """
    composed = [compose("", prompt, _CAST, []) for prompt in _PROMPTS[: package.manifest.limits.max_frames]]
    frames = [
        FrameJob(prompt, frame_seed(0, index))
        for index, prompt in enumerate(composed)
        if isinstance(prompt, ComposedPrompt)
    ]
    defaults = package.manifest.defaults
    return StoryJob(
        tuple(frames), "", steps, defaults.guidance_scale, defaults.solver, defaults.width, defaults.height,
        defaults.adapter if adapter is None else adapter,
    )  # fmt: skip


def make(denoiser: Denoiser, job: StoryJob) -> NDArray[np.uint8]:
    """Makes a story; its pictures, [F, height, width, 3]."""
    state = denoiser.encode(job)
    while not state.done:
        denoiser.step([state])
    return denoiser.decode(state, range(len(job.frames)))
