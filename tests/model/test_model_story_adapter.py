"""Story-Adapter's rounds: a round's attention against the formula written out, alone and beside others, and refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from storyloom_model.batch import predict, unet_pass
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import FrameJob, Redenoising, StoryJob
from storyloom_model.methods.rounds import ADAPTERS, Rounds, shown
from storyloom_model.prompts import ComposedPrompt
from tests.model.tiny import finish, tiny_job
from tests.model.tiny_rounds import build_rounds_package, pictures, projections, references

ROUND: dict[str, Any] = {"method": "story-adapter", "adapter": None}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_rounds_package(tmp_path_factory.mktemp("rounds") / "package")


@pytest.fixture(scope="module")
def denoiser(package: Path) -> Denoiser:
    return Denoiser.load(package)


def a_round(count: int = 3, scale: float = 0.4, adapter: str = "plain", seed: int = 0, **settings: Any) -> StoryJob:
    return tiny_job(**ROUND, identity_adapter=adapter, global_references=references(count, scale, seed), **settings)


@given(st.integers(1, 32), st.floats(0, 2), st.floats(0, 2))
def test_scales_go_evenly_from_one_to_the_other(count: int, first: float, last: float) -> None:
    scales = Rounds(count, first, last).scales
    assert len(scales) == count
    assert scales[0] == 0
    if count > 1:
        assert scales[1] == first
    if count > 2:
        assert scales[-1] == pytest.approx(last)
        steps = [b - a for a, b in pairwise(scales[1:])]
        assert steps == pytest.approx([(last - first) / (count - 2)] * (count - 2), abs=1e-12)


def test_scales_are_those_of_the_authors() -> None:
    """Their ten rounds from 0.3 to 0.5."""
    expected = [0.0, *(0.3 + 0.2 * place / 9 for place in range(10))]
    assert Rounds(11, 0.3, 0.5).scales == pytest.approx(expected)


@given(st.integers(1, 300), st.integers(1, 130))
def test_pictures_beyond_the_limit_are_left_out_evenly(count: int, most: int) -> None:
    chosen = shown(range(count), most)
    assert len(chosen) == min(count, most)
    assert list(chosen) == sorted(set(chosen))
    if count <= most:
        assert chosen == tuple(range(count))
    elif most > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        gaps = [b - a for a, b in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1


def picture_tokens(package: Path, count: int, *, empty: bool) -> Tensor:
    """The published projection, written out: four tokens of each picture's embedding, [1, 4 count, 32]."""
    weights = projections(package, "plain")
    seen = torch.stack([torch.as_tensor(one.character_embedding) for one in pictures(count)])
    seen = torch.zeros_like(seen) if empty else seen
    tokens = seen @ weights["image_proj.proj.weight"].T + weights["image_proj.proj.bias"]
    tokens = tokens.reshape(count, 4, 32)
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, unbiased=False, keepdim=True)
    tokens = (tokens - mean) / (variance + 1e-5).sqrt()
    return (tokens * weights["image_proj.norm.weight"] + weights["image_proj.norm.bias"]).reshape(1, 4 * count, 32)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention in float64, [R, N, C] with one row of keys for all."""
    q, k, v = (one.double().unflatten(-1, (heads, -1)).transpose(1, 2) for one in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def test_every_layer_adds_one_softmax_over_all_pictures(denoiser: Denoiser, package: Path) -> None:
    """Text attention plus the round's scale times attention to the tokens of all pictures, wherever a query is."""
    count, scale = 3, 0.45
    state = denoiser.encode(a_round(count, scale))
    denoiser.step([state])
    seen: list[tuple[Any, Tensor, Tensor, Tensor]] = []

    def look(module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        seen.append((module, args[0], kwargs["encoder_hidden_states"], output))

    layers = [module for name, module in denoiser._unets[None].named_modules() if name.endswith("attn2")]
    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in layers]
    denoiser.step([state])
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(layers) == 7
    weights = projections(package, "plain")
    halves = [picture_tokens(package, count, empty=empty) for empty in (True, False)]
    for module, hidden, text, output in seen:
        place = next(place for place, one in enumerate(layers) if one is module)
        to_k, to_v = (weights[f"ip_adapter.{2 * place + 1}.to_{part}_ip.weight"] for part in "kv")
        q = module.to_q(hidden)
        told = attention(q, module.to_k(text), module.to_v(text), module.heads)
        shown_to = [
            attention(rows, tokens @ to_k.T, tokens @ to_v.T, module.heads)
            for rows, tokens in zip(q.chunk(2), halves, strict=True)
        ]
        expected = module.to_out[0]((told + scale * torch.cat(shown_to)).float())
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
        # Each picture for itself would be something else.
        apart = sum(
            attention(q.chunk(2)[1], one @ to_k.T, one @ to_v.T, module.heads) for one in halves[1].split(4, dim=1)
        )
        assert float((apart / count - shown_to[1]).abs().max()) > 1e-3


def test_the_first_round_is_every_frame_on_its_own(denoiser: Denoiser) -> None:
    alone = finish(denoiser, tiny_job(adapter=None, cross_frame=False))
    assert torch.equal(finish(denoiser, tiny_job(**ROUND)).latents, alone.latents)
    none = finish(denoiser, a_round(scale=0.0))
    assert difference(none.latents, alone.latents) < 1e-4


@pytest.mark.parametrize("adapter", ["plain", "plus"])
def test_every_picture_and_the_scale_count(denoiser: Denoiser, adapter: str) -> None:
    """In every frame, also in those without anybody; and the order of the pictures does not."""
    made = {
        name: finish(denoiser, a_round(adapter=adapter, **change)).latents
        for name, change in (("as it is", {}), ("louder", {"scale": 0.8}), ("other pictures", {"seed": 1}))
    }
    for name in ("louder", "other pictures"):
        assert all(difference(*pair) > 1e-3 for pair in zip(made["as it is"], made[name], strict=True)), name


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def nobody(job: StoryJob) -> StoryJob:
    """The same without characters."""
    frames = tuple(FrameJob(ComposedPrompt(frame.prompt.text, {}), frame.seed) for frame in job.frames)
    return replace(job, frames=frames)


@pytest.fixture
def others() -> list[StoryJob]:
    """Of other methods, with characters and without."""
    return [tiny_job(2, seed=5, adapter=None), tiny_job(2, seed=6, adapter=None, method="storydiffusion")]


@pytest.mark.parametrize("bare", [False, True])
def test_rounds_share_calls_with_other_stories(denoiser: Denoiser, others: list[StoryJob], *, bare: bool) -> None:
    """In one padded UNet call, as on a GPU: rounds with other numbers of pictures, and other methods."""
    own = [a_round(3), a_round(9, seed=2), a_round(40, scale=0.7, seed=3, guidance_scale=1.0)]
    jobs = [*(nobody(job) if bare else job for job in own), *others]
    states = [denoiser.encode(job) for job in jobs]
    denoiser.step(states)
    alone = [predict(lambda inputs: unet_pass(denoiser._unet, denoiser._rule, inputs), [state]) for state in states]
    batching = Denoiser.load(denoiser._package.folder, options=ExecutionOptions(buckets=(64,)), one_call=True)
    together = batching._predict(states)
    for (one,), other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=1e-4)


def test_a_round_goes_on_from_a_checkpoint_to_the_bit(denoiser: Denoiser) -> None:
    job = a_round(adapter="plus")
    whole, stopped = finish(denoiser, job), denoiser.encode(job)
    denoiser.step([stopped])
    kept = denoiser.save(stopped)
    resumed = denoiser.restore(job, kept)
    while not resumed.done:
        denoiser.step([resumed])
    assert torch.equal(resumed.latents, whole.latents)
    for other in (a_round(adapter="plus", seed=1), a_round(adapter="plus", scale=0.5), tiny_job(**ROUND)):
        with pytest.raises(ValueError, match="another job"):
            denoiser.restore(other, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity_adapter": "face"}, "takes characters, not whole pictures; name one of the form ip-adapter or"),
        ({"identity_adapter": None}, "the frames have references, but no identity adapter is named"),
        ({"global_references": references(2, 2.5)}, "have scale 2.5; use one from 0 to 2"),
        ({"redenoising": Redenoising(1, ())}, "takes no second pass"),
        ({"global_references": references(200)}, "have 800 identity tokens"),
    ],
)
def test_what_cannot_be_made_is_said(denoiser: Denoiser, change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        denoiser.encode(replace(a_round(), **change))


def test_the_encoder_sees_the_whole_picture(denoiser: Denoiser) -> None:
    """Both halves count, and nobody needs to be in it."""
    encoder = denoiser.reference_encoder
    assert encoder is not None
    draw = torch.Generator().manual_seed(1)
    picture = torch.randint(0, 256, (64, 96, 3), generator=draw, dtype=torch.uint8).numpy()
    seen = encoder.encode_picture(picture)
    assert seen.character_states is not None
    assert seen.character_states.shape == (50, 128)
    for change in (slice(0, 48), slice(48, 96)):
        other = picture.copy()
        other[:, change] = 0
        found = encoder.encode_picture(other).character_embedding
        assert found is not None
        assert F.cosine_similarity(torch.tensor(found), torch.tensor(seen.character_embedding), dim=0) < 0.99
    assert {one.reads for one in ADAPTERS.values()} == {"character_embedding", "character_states"}
