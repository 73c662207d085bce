"""Anchors: finished frames that lend their looks to new ones and do not change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.noise import initial_noise
from storyloom_model.solvers import SOLVERS, Solver
from tests.model.tiny import finish, tiny_anchors, tiny_job, tiny_scheduler


def model_inputs(denoiser: Denoiser, **settings: Any) -> list[Tensor]:
    """What the UNet was given in each step of a story."""
    seen: list[Tensor] = []
    unet = denoiser._unets["amsa-mask"]
    hook = unet.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    try:
        finish(denoiser, tiny_job(2, **settings))
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 4, 61])
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_an_anchor_has_the_level_of_noise_of_its_step(name: str, steps: int, kind: str) -> None:
    config = dict(tiny_scheduler().config) | {"prediction_type": kind, "rescale_betas_zero_snr": kind != "epsilon"}
    schedule = type(tiny_scheduler()).from_config(config)
    solver = Solver(name, schedule, steps)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = solver.start(noise)
    for _ in range(steps):
        alpha_squared = float(schedule.alphas_cumprod[round(solver.timestep)])
        expected = alpha_squared**0.5 * clean + (1 - alpha_squared) ** 0.5 * noise
        torch.testing.assert_close(solver.noised(clean, noise), expected, atol=2e-3, rtol=0)
        # diffusers' own noising, at the scale that this solver keeps its latents in.
        time = solver._now()[None] if name != "ddim" else solver._now()[None].long()
        theirs = solver._scheduler.add_noise(clean, noise, time)
        torch.testing.assert_close(solver.model_input(theirs), solver.noised(clean, noise), atol=1e-4, rtol=0)
        latents, _ = solver.advance(latents, torch.zeros_like(latents))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_unet_sees_anchors_behind_the_frames_of_each_branch(
    denoiser: Denoiser, solver: str, guidance_scale: float
) -> None:
    anchors = tiny_anchors(denoiser, 2)
    noise = initial_noise([anchor.seed for anchor in anchors], (4, 8, 8))
    clean = torch.stack(
        [torch.frombuffer(bytearray(anchor.latents), dtype=torch.float32).reshape(4, 8, 8) for anchor in anchors]
    )
    times = Solver(solver, tiny_scheduler(), 4)._timesteps
    seen = model_inputs(denoiser, anchors=anchors, solver=solver, guidance_scale=guidance_scale)
    for time, given_rows in zip(times, seen, strict=True):
        alpha_squared = float(tiny_scheduler().alphas_cumprod[round(time)])
        expected = alpha_squared**0.5 * clean + (1 - alpha_squared) ** 0.5 * noise
        for branch in given_rows.chunk(1 if guidance_scale == 1 else 2):
            assert len(branch) == 4
            torch.testing.assert_close(branch[2:], expected, atol=2e-3, rtol=0)


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 3), seed=st.integers(0, 99), solver=st.sampled_from(sorted(SOLVERS)))
def test_anchors_stay_what_they_are_whatever_is_made_beside_them(
    denoiser: Denoiser, frames: int, seed: int, solver: str
) -> None:
    anchors = tiny_anchors(denoiser, 2)
    state = finish(denoiser, tiny_job(frames, seed=seed, solver=solver, anchors=anchors))
    assert state.latents.shape[0] == frames == len(denoiser.final_latents(state))
    assert state.rows == 2 * (frames + 2)
    assert [row.numpy().tobytes() for row in state.anchors] == [anchor.latents for anchor in anchors]
    assert denoiser.decode(state, range(frames)).shape[0] == frames
    assert denoiser.preview(state, range(frames)).shape[0] == frames
    with pytest.raises(IndexError):
        denoiser.decode(state, [frames])


def test_anchors_lend_their_looks(denoiser: Denoiser) -> None:
    alone = finish(denoiser, tiny_job(1))
    lent = {
        name: finish(denoiser, tiny_job(1, anchors=anchors, cross_frame=cross))
        for name, anchors, cross in [
            ("one", tiny_anchors(denoiser, 1), True),
            ("other", tiny_anchors(denoiser, 1, seed=8), True),
            ("unseen", tiny_anchors(denoiser, 1), False),
        ]
    }
    assert float((lent["one"].latents - alone.latents).abs().max()) > 1e-3
    assert float((lent["one"].latents - lent["other"].latents).abs().max()) > 1e-3
    torch.testing.assert_close(lent["unseen"].latents, alone.latents, atol=1e-4, rtol=0)


def test_an_anchor_with_nobody_of_the_new_frames_lends_nothing(denoiser: Denoiser) -> None:
    """Bo alone is no anchor for Mia alone."""
    everyone = tiny_anchors(denoiser, 3)
    lent = finish(denoiser, tiny_job(1, anchors=everyone[2:]))
    alone = finish(denoiser, tiny_job(1))
    torch.testing.assert_close(lent.latents, alone.latents, atol=2e-2, rtol=0)


def test_final_latents_are_those_that_are_decoded(denoiser: Denoiser) -> None:
    state = denoiser.encode(tiny_job(2))
    with pytest.raises(ValueError, match="at step 0"):
        denoiser.final_latents(state)
    state = finish(denoiser, tiny_job(2))
    kept = [torch.frombuffer(bytearray(data), dtype=torch.float32) for data in denoiser.final_latents(state)]
    assert torch.equal(torch.stack(kept).reshape(state.latents.shape), state.latents)


def test_anchors_of_another_size_are_refused(denoiser: Denoiser) -> None:
    job = tiny_job(1, anchors=tiny_anchors(denoiser, 1))
    with pytest.raises(JobError, match="1024 bytes, a frame of this story 1536; anchors must be frames of 96x64"):
        denoiser.encode(dataclasses.replace(job, width=96))
