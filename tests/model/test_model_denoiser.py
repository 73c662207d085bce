"""Whole stories through the engine of a model package: pictures, isolation, failure."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import StoryJob
from storyloom_model.state import StoryState
from tests.model.tiny import build_tiny_package, finish, tiny_job


def run_batch(denoiser: Denoiser, jobs: list[StoryJob], joins: list[int]) -> list[StoryState]:
    """Steps all stories together; story i joins at batch step ``joins[i]`` and leaves when it is done."""
    states: list[StoryState | None] = [None] * len(jobs)
    clock = 0
    while any(state is None or not state.done for state in states):
        for index, join in enumerate(joins):
            if join == clock:
                states[index] = denoiser.encode(jobs[index])
        running = [state for state in states if state is not None and not state.done]
        if running:
            denoiser.step(running)
        clock += 1
    return [state for state in states if state is not None]


def difference(first: StoryState, second: StoryState) -> float:
    return float((first.latents - second.latents).abs().max())


@pytest.mark.parametrize("solver", ["ddim", "euler", "unipc"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_story_becomes_pictures(denoiser: Denoiser, solver: str, guidance_scale: float) -> None:
    state = denoiser.encode(tiny_job(3, solver=solver, guidance_scale=guidance_scale))
    assert (state.step_index, state.steps, state.done) == (0, 4, False)
    assert state.rows == (3 if guidance_scale == 1 else 6)
    for done in range(1, 5):
        denoiser.step([state])
        assert state.step_index == done
    assert state.done
    assert state.error is None
    pictures = denoiser.decode(state, [2, 0])
    assert pictures.shape == (2, 64, 64, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(denoiser.decode(state, [0])[0], pictures[1])
    assert denoiser.preview(state, [0, 1, 2]).shape == (3, 8, 8, 3)


def test_wide_pictures_are_wide(denoiser: Denoiser) -> None:
    state = finish(denoiser, tiny_job(2, width=96))
    assert denoiser.decode(state, [0]).shape == (1, 64, 96, 3)


def test_the_same_job_gives_the_same_pictures_and_another_seed_others(denoiser: Denoiser) -> None:
    first, again = finish(denoiser, tiny_job(2)), finish(denoiser, tiny_job(2))
    assert torch.equal(first.latents, again.latents)
    assert difference(first, finish(denoiser, tiny_job(2, seed=2))) > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_scale": 2.0},
        {"negative_prompt": "a girl"},
        {"adapter": "amsa"},
        {"adapter": "none"},
        {"cross_frame": False},
        {"solver": "unipc"},
    ],
)
def test_every_setting_matters(denoiser: Denoiser, change: dict[str, Any]) -> None:
    assert difference(finish(denoiser, tiny_job(2)), finish(denoiser, tiny_job(2, **change))) > 1e-3


def test_all_ways_to_say_no_adapter_are_one(denoiser: Denoiser) -> None:
    keys = {denoiser.encode(tiny_job(1, adapter=name)).key for name in (None, "", "none")}
    assert len(keys) == 1


def test_without_consistency_frames_are_made_on_their_own(denoiser: Denoiser) -> None:
    job = tiny_job(3, cross_frame=False)
    together = finish(denoiser, job)
    for index, frame in enumerate(job.frames):
        alone = finish(denoiser, dataclasses.replace(job, frames=(frame,)))
        torch.testing.assert_close(together.latents[index], alone.latents[0], atol=1e-4, rtol=0)


jobs = st.builds(
    tiny_job,
    frames=st.integers(1, 4),
    seed=st.integers(0, 99),
    steps=st.integers(1, 5),
    guidance_scale=st.sampled_from([1.0, 3.0]),
    solver=st.sampled_from(["ddim", "euler", "unipc"]),
    cross_frame=st.sampled_from([True, True, False]),
)
batches = st.lists(st.tuples(jobs, st.integers(0, 4)), min_size=2, max_size=4)


@settings(max_examples=10, deadline=None)
@given(batches)
def test_a_story_does_not_notice_the_others(denoiser: Denoiser, batch: list[tuple[StoryJob, int]]) -> None:
    states = run_batch(denoiser, [job for job, _ in batch], [join for _, join in batch])
    for state, (job, _) in zip(states, batch, strict=True):
        assert torch.equal(state.latents, finish(denoiser, job).latents)


def test_stories_that_share_a_call_keep_their_own_pictures(tiny_package: Path, denoiser: Denoiser) -> None:
    """Rounding differs between batch sizes, and may flip a position of a mask; mixing up rows would do far more."""
    one_call = Denoiser.load(tiny_package, options=ExecutionOptions(buckets=()), one_call=True)
    jobs = [
        tiny_job(3, seed=1, steps=3),
        tiny_job(4, seed=2, steps=5, guidance_scale=1.0, solver="euler"),
        tiny_job(1, seed=3, steps=4, guidance_scale=2.0),
        tiny_job(2, seed=4, steps=4, cross_frame=False, solver="unipc"),
    ]
    calls: list[int] = []
    one_call._unets["amsa-mask"].register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    states = run_batch(one_call, jobs, [0, 1, 1, 2])
    assert calls == [6, 6 + 4 + 2, 6 + 4 + 2 + 4, 4 + 2 + 4, 4 + 2 + 4, 4 + 4]
    for state, job in zip(states, jobs, strict=True):
        assert difference(state, finish(denoiser, job)) < 0.02


@pytest.mark.parametrize("one_call", [False, True])
def test_a_story_that_goes_wrong_goes_alone(tiny_package: Path, one_call: bool) -> None:
    denoiser = Denoiser.load(tiny_package, one_call=one_call)
    expected = finish(denoiser, tiny_job(2, seed=5))
    good, bad = denoiser.encode(tiny_job(2, seed=5)), denoiser.encode(tiny_job(3, seed=6))
    bad.latents = bad.latents.clone()
    bad.latents[1, 0, 3, 3] = float("nan")
    denoiser.step([bad, good])
    assert bad.error is not None
    assert "non-finite at step 1 of 4" in bad.error
    assert good.error is None
    while not good.done:
        denoiser.step([good])
    assert difference(good, expected) < 0.02
    with pytest.raises(ValueError, match="takes no more steps"):
        denoiser.step([bad])


def test_stories_that_cannot_share_a_step_are_refused(denoiser: Denoiser) -> None:
    first, second = denoiser.encode(tiny_job(1)), denoiser.encode(tiny_job(1, width=96))
    assert first.key != second.key
    with pytest.raises(ValueError, match="one compatibility key"):
        denoiser.step([first, second])
    with pytest.raises(ValueError, match="at least one story"):
        denoiser.step([])
    with pytest.raises(ValueError, match="takes no more steps"):
        denoiser.step([finish(denoiser, tiny_job(1, steps=1))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adapter": "gone"}, "no adapter called gone; use one of amsa-mask, amsa, none"),
        ({"solver": "heun"}, "unknown solver heun; use one of ddim"),
        ({"width": 128}, "size 128x64 is not served; use one of 64x64, 96x64"),
        ({"steps": 101}, "takes 1 to 100"),
        ({"frames": 0}, "no frames"),
    ],
)
def test_a_job_that_cannot_be_made_says_what_to_change(denoiser: Denoiser, change: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words):
        denoiser.encode(tiny_job(**change))


def test_a_story_without_characters_is_made(denoiser: Denoiser) -> None:
    job = tiny_job(2)
    plain = tuple(
        dataclasses.replace(frame, prompt=dataclasses.replace(frame.prompt, text="the park", spans={}))
        for frame in job.frames
    )
    state, other = (denoiser.encode(dataclasses.replace(job, frames=frames)) for frames in (plain, job.frames))
    denoiser.step([state, other])
    assert state.token_mask.shape[1] == 0
    assert state.error is None


def test_adapters_share_what_they_do_not_change(denoiser: Denoiser) -> None:
    base, adapted = (dict(denoiser._unets[name].named_parameters()) for name in (None, "amsa"))
    own = {name for name in base if base[name] is not adapted[name]}
    assert own
    assert all(".attn1." in name or ".attn2.to_q" in name or ".attn2.to_k" in name for name in own)


def test_previews_resemble_the_pictures(denoiser: Denoiser) -> None:
    """After the last step, the preview correlates with the picture at its size."""
    state = finish(denoiser, tiny_job(3, steps=6))
    pictures = denoiser.decode(state, [0, 1, 2]).reshape(3, 8, 8, 8, 8, 3).mean(axis=(2, 4))
    previews = denoiser.preview(state, [0, 1, 2])
    assert np.corrcoef(pictures.ravel(), previews.ravel())[0, 1] > 0.5


def test_packages_of_different_seeds_make_different_pictures(tmp_path: Path, denoiser: Denoiser) -> None:
    other = Denoiser.load(build_tiny_package(tmp_path / "other", seed=1))
    assert difference(finish(other, tiny_job(1)), finish(denoiser, tiny_job(1))) > 0.1


def test_a_shorter_type_takes_the_same_path(tiny_package: Path, denoiser: Denoiser) -> None:
    short = Denoiser.load(tiny_package, options=ExecutionOptions(dtype="bfloat16"))
    state = finish(short, tiny_job(2))
    assert state.latents.dtype == torch.float32
    assert state.key != denoiser.encode(tiny_job(2)).key
    assert short.decode(state, [0]).shape == (1, 64, 64, 3)
    assert torch.isfinite(state.latents).all()
