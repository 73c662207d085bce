"""Checkpoints: a story that stopped and went on ends as one that never stopped; anything else is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_model.checkpoint import CheckpointError
from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.state import StoryState
from tests.model.tiny import build_tiny_package, tiny_anchors, tiny_job

SOLVERS = ["ddim", "euler", "unipc"]


def at_step(denoiser: Denoiser, step: int, solver: str = "unipc") -> tuple[StoryState, bytes]:
    state = denoiser.encode(tiny_job(2, solver=solver))
    for _ in range(step):
        denoiser.step([state])
    return state, denoiser.save(state)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=6, deadline=None)
@given(
    steps=st.integers(1, 6), frames=st.integers(1, 3), anchors=st.integers(0, 2), guidance=st.sampled_from([1.0, 3.0])
)
def test_a_story_goes_on_at_any_step_as_if_nothing_had_happened(
    denoiser: Denoiser, solver: str, steps: int, frames: int, anchors: int, guidance: float
) -> None:
    job = tiny_job(frames, steps=steps, solver=solver, guidance_scale=guidance, anchors=tiny_anchors(denoiser, anchors))
    going = denoiser.encode(job)
    kept = [denoiser.save(going)]
    while not going.done:
        denoiser.step([going])
        kept.append(denoiser.save(going))
    for step, data in enumerate(kept):
        state = denoiser.restore(job, data)
        assert state.step_index == step
        while not state.done:
            denoiser.step([state])
        assert torch.equal(state.latents, going.latents)
        assert torch.equal(state.predicted, going.predicted)
        if going.previous_maps is not None:
            assert state.previous_maps is not None
            assert torch.equal(state.previous_maps, going.previous_maps)


def test_going_on_twice_from_one_checkpoint_gives_the_same(denoiser: Denoiser) -> None:
    state, data = at_step(denoiser, 2)
    first, second = (denoiser.restore(state.job, data) for _ in range(2))
    denoiser.step([first])
    denoiser.step([second])
    assert torch.equal(first.latents, second.latents)


def test_another_process_of_the_same_package_goes_on(denoiser: Denoiser, tiny_package: Path) -> None:
    state, data = at_step(denoiser, 2)
    again = Denoiser.load(tiny_package)
    restored = again.restore(state.job, data)
    denoiser.step([state])
    again.step([restored])
    assert torch.equal(restored.latents, state.latents)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_data_are_refused(denoiser: Denoiser, data: st.DataObject) -> None:
    state, good = at_step(denoiser, 2)
    place = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        bad = good[:place]
    else:
        flipped = bytearray(good)
        flipped[place] ^= 1 << data.draw(st.integers(0, 7))
        bad = bytes(flipped)
    with pytest.raises(CheckpointError):
        denoiser.restore(state.job, bad)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"no checkpoint at all", b"\xff" * 64])
def test_other_data_are_refused(denoiser: Denoiser, data: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        denoiser.restore(tiny_job(1), data)


def test_a_checkpoint_of_another_job_model_or_dtype_is_refused(
    denoiser: Denoiser, tiny_package: Path, tmp_path: Path
) -> None:
    state, data = at_step(denoiser, 1)
    others = [
        (denoiser, dataclasses.replace(state.job, guidance_scale=5.0)),
        (denoiser, dataclasses.replace(state.job, method="storydiffusion")),
        (denoiser, dataclasses.replace(state.job, frames=state.job.frames[::-1])),
        (denoiser, dataclasses.replace(state.job, anchors=tiny_anchors(denoiser, 1))),
        (Denoiser.load(build_tiny_package(tmp_path / "other", seed=1)), state.job),
        (Denoiser.load(tiny_package, options=ExecutionOptions(dtype="bfloat16")), state.job),
    ]
    for other, job in others:
        with pytest.raises(CheckpointError, match="of another job, or of another model"):
            other.restore(job, data)


def test_a_failed_story_has_no_checkpoint(denoiser: Denoiser) -> None:
    state, _ = at_step(denoiser, 1)
    state.error = "gone"
    with pytest.raises(ValueError, match="has failed"):
        denoiser.save(state)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_checkpoint_is_no_larger_than_it_must_be(denoiser: Denoiser, solver: str) -> None:
    state, data = at_step(denoiser, 3, solver)
    assert state.previous_maps is not None
    latents = 5 if solver == "unipc" else 2
    assert len(data) < 4 * (latents * state.latents.numel() + state.previous_maps.numel()) + 1500
