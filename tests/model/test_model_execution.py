"""Calls padded to buckets, compiled, and captured: what runs changes, the pictures do not."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storyloom_model.batch import Capacity, collate, pad, predict, unet_pass
from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ROW_BUCKETS, ExecutionOptions
from storyloom_model.jobs import StoryJob
from storyloom_model.state import StoryState
from storyloom_model.variants import Variant
from tests.model.tiny import finish, tiny_anchors, tiny_job

jobs = st.builds(
    tiny_job,
    frames=st.integers(1, 3),
    seed=st.integers(0, 99),
    guidance_scale=st.sampled_from([1.0, 3.0]),
    cross_frame=st.booleans(),
)


def encoded(denoiser: Denoiser, batch: list[StoryJob], steps: list[int]) -> list[StoryState]:
    """Stories at different steps."""
    states = [denoiser.encode(job) for job in batch]
    for state, done in zip(states, steps, strict=False):
        for _ in range(done):
            denoiser.step([state])
    return states


@settings(max_examples=12, deadline=None)
@given(
    batch=st.lists(jobs, min_size=1, max_size=3),
    steps=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    extra=st.integers(1, 5),
    content=st.sampled_from([7.0, 1e4, float("nan")]),
)
@torch.inference_mode()
def test_whatever_is_in_the_padding_real_rows_are_bitwise_the_same(
    denoiser: Denoiser, batch: list[StoryJob], steps: list[int], extra: int, content: float
) -> None:
    states = encoded(denoiser, batch, steps)
    rows = sum(state.rows for state in states)
    unet, rule = denoiser._unets["amsa-mask"], denoiser._rule
    padded = pad(collate(states), Capacity(rows + extra, 4))
    clean = unet_pass(unet, rule, padded)
    dirty = dict(padded)
    for name, value in padded.items():
        if name in ("latents", "text") or name.startswith(("key.", "value.")):
            dirty[name] = value.clone()
            dirty[name][rows:] = content
    found = unet_pass(unet, rule, dirty)
    assert torch.equal(found["values"][:rows], clean["values"][:rows])
    if "maps" in clean:
        sources = sum(state.job.group for state in states)
        assert torch.equal(found["maps"][:sources], clean["maps"][:sources])


@settings(max_examples=8, deadline=None)
@given(batch=st.lists(jobs, min_size=1, max_size=3), extra=st.integers(0, 5))
@torch.inference_mode()
def test_padding_changes_a_first_step_by_rounding_only(denoiser: Denoiser, batch: list[StoryJob], extra: int) -> None:
    """No maps decide yet in the first layer; deeper ones may lose a position to rounding, hence a mean."""
    states = encoded(denoiser, batch, [])
    rows = sum(state.rows for state in states)

    def call(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return unet_pass(denoiser._unets["amsa-mask"], denoiser._rule, inputs)

    for one, other in zip(predict(call, states), predict(call, states, Capacity(rows + extra, 4)), strict=True):
        assert one.values.shape == other.values.shape
        assert float((one.values - other.values).abs().mean()) < 1e-3
        assert (one.maps is None) == (other.maps is None)
        if one.maps is not None and other.maps is not None:
            assert one.maps.shape == other.maps.shape
            assert float((one.maps - other.maps).abs().mean()) < 1e-3


@pytest.mark.parametrize("anchors", [0, 2])
def test_stories_in_buckets_keep_their_pictures(tiny_package: Path, denoiser: Denoiser, anchors: int) -> None:
    shared = Denoiser.load(tiny_package, options=ExecutionOptions(buckets=(4, 16)), one_call=True)
    seen: list[int] = []
    shared._unets["amsa-mask"].register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    stories = [
        tiny_job(1, seed=1, guidance_scale=1.0),
        tiny_job(3, seed=2, solver="unipc", anchors=tiny_anchors(denoiser, anchors)),
    ]
    states = [shared.encode(job) for job in stories]
    while not states[0].done:
        shared.step(states)
    assert seen == [16] * 4
    for state, job in zip(states, stories, strict=True):
        assert float((state.latents - finish(denoiser, job).latents).abs().max()) < 0.02
    finish(shared, stories[0])
    assert seen[4:] == [4] * 4
    finish(shared, tiny_job(4, steps=1, anchors=tiny_anchors(denoiser, 3) * 2))
    assert seen[8:] == [20]  # More than the largest bucket.


def test_in_a_bucket_a_story_does_not_notice_the_others(tiny_package: Path) -> None:
    """The contract of shared calls: bitwise within a bucket, wherever in it the rows are alike placed."""
    shared = Denoiser.load(tiny_package, options=ExecutionOptions(buckets=(16,)), one_call=True)
    expected = finish(shared, tiny_job(2, seed=1))
    beside = shared.encode(tiny_job(3, seed=2, solver="euler"))
    state = shared.encode(tiny_job(2, seed=1))
    while not state.done:
        shared.step([state, beside])
    assert torch.equal(state.latents, expected.latents)


@pytest.fixture(scope="module")
def compiled(tiny_package: Path) -> Denoiser:
    options = ExecutionOptions(compile=True, buckets=(4,))
    return Denoiser.load(tiny_package, options=options, one_call=True)


def test_what_cannot_be_compiled_runs_as_it_is(
    compiled: Denoiser, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(inputs: object) -> object:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiled._runner, "_compiled", {Variant("amsa-mask"): refuse})
    with caplog.at_level(logging.WARNING, "storyloom.model"):
        state = finish(compiled, tiny_job(2))
    assert float((state.latents - finish(denoiser, tiny_job(2)).latents).abs().max()) < 0.02
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile does not work here, UNet calls run without: no compiler here"
    ]
    assert not compiled._runner.compiled


def test_a_compiled_call_that_is_wrong_in_itself_says_so(compiled: Denoiser) -> None:
    with pytest.raises(ValueError, match="one compatibility key"):
        compiled.step([compiled.encode(tiny_job(1)), compiled.encode(tiny_job(1, width=96))])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buckets": (4, 2)}, "positive and ascending"),
        ({"buckets": (0, 2)}, "positive and ascending"),
        ({"max_graphs": 0}, "at least 1"),
        ({"buckets": (), "cuda_graphs": True}, "need row buckets"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExecutionOptions(**changes)


@pytest.mark.parametrize("name", ["cuda_graphs", "channels_last"])
def test_what_only_a_gpu_has_is_refused_elsewhere(tiny_package: Path, name: str) -> None:
    options = dataclasses.replace(ExecutionOptions(), **{name: True})
    with pytest.raises(ValueError, match=f"{name} need a CUDA device, and this one is cpu"):
        Denoiser.load(tiny_package, options=options)


@given(st.integers(1, 100))
def test_the_bucket_is_the_smallest_that_holds_the_rows(rows: int) -> None:
    found = ExecutionOptions().bucket(rows)
    assert found == min((bucket for bucket in ROW_BUCKETS if bucket >= rows), default=None)
