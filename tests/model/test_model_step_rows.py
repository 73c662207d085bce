"""What every step of a job asks for: against what the engine does, and in itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom_model.batch import Tensors
from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import AnchorFrame, Identity, Redenoising, StoryJob
from storyloom_model.methods.names import METHODS
from storyloom_model.step_rows import step_rows, total_steps
from tests.model.test_model_redenoising import regions
from tests.model.tiny import finish, tiny_job
from tests.model.tiny_control import LANDMARKS, posed, with_landmarks


def faced(job: StoryJob, *names: str) -> StoryJob:
    """With references of some characters, whose faces a ControlNet of the package reads."""
    identities = tuple(Identity(name, with_landmarks(seed)) for seed, name in enumerate(names))
    return replace(job, identities=identities, identity_adapter="faces", face_controlnet="face")


def redenoised(job: StoryJob, start: int) -> StoryJob:
    return replace(job, redenoising=Redenoising(start, regions(*(one.character for one in job.identities))))


TWICE: dict[str, Any] = {"method": "consistory", "steps": 10, "feature_injection": True}
JOBS = {
    "twice": tiny_job(2, **TWICE, guidance_scale=1.0),
    "poses": posed(tiny_job(3, **{**TWICE, "feature_injection": False}), 1, None, 2),
    "unseen pose": posed(tiny_job(2, steps=2), 1, scale=0.0),
    "faces": posed(faced(tiny_job(3, steps=2), "mia", "bo"), 1),
    "a face of a picture": posed(faced(tiny_job(1, steps=2, guidance_scale=1.0), "mia"), 1, net="face"),
    "all of it": redenoised(posed(faced(tiny_job(3, **TWICE), "mia", "bo"), None, 1), 0),
}


@pytest.mark.parametrize("name", JOBS)
def test_they_are_what_the_engine_does(control_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Rows of every UNet call, and of every call of a ControlNet in it."""
    job, calls = JOBS[name], list[tuple[int, int]]()
    call = control_denoiser._runner.call

    def counting(variant: Any, inputs: Tensors) -> Tensors:
        controlled = sum(len(value) for key, value in inputs.items() if key.endswith("/rows"))
        calls.append((len(inputs["latents"]), controlled))
        return call(variant, inputs)

    monkeypatch.setattr(control_denoiser._runner, "call", counting)
    seeing = replace(control_denoiser._starter, find_faces=lambda picture: [LANDMARKS])
    monkeypatch.setattr(control_denoiser, "_starter", seeing)
    branches = 2 if job.guided else 1
    told = [(branches * sum(one.groups), branches * one.controlled) for one in step_rows(job) for _ in range(one.steps)]
    state = finish(control_denoiser, job)
    assert calls == told
    assert state.step_index == len(told)


@given(
    frames=st.integers(1, 4),
    anchors=st.integers(0, 2),
    steps=st.integers(1, 40),
    method=st.sampled_from(METHODS),
    cross_frame=st.booleans(),
    twice=st.booleans(),
    start=st.none() | st.floats(0, 0.99),
)
def test_they_are_all_steps_in_order(
    frames: int, anchors: int, steps: int, method: str, cross_frame: bool, twice: bool, start: float | None
) -> None:
    job = tiny_job(frames, steps=steps, method=method, cross_frame=cross_frame, feature_injection=twice)
    job = replace(job, anchors=tuple(AnchorFrame(job.frames[0].prompt, seed, b"") for seed in range(anchors)))
    if start is not None:
        job = redenoised(faced(job, "mia"), int(start * steps))
    told = step_rows(job)
    assert sum(one.steps for one in told) == total_steps(job)
    assert all(one.steps > 0 and min(one.groups) > 0 for one in told)
    assert all(one != other for one, other in pairwise(told))
    each = [sum(one.groups) for one in told for _ in range(one.steps)][: job.runs * steps]
    # A plain pass beside the first tenth of each run, but for its first step, and never anywhere else.
    doubled = [step for step, rows in enumerate(each) if rows == 2 * job.group]
    mixes = method == "consistory" and job.crosses_frames
    assert doubled == [step for step in range(len(each)) if mixes and 1 <= step % steps <= steps // 10]
    assert all(rows in (job.group, 2 * job.group) for rows in each)
