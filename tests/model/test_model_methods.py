"""Story methods: each against a plain formula of its own, alone and beside others, stopped and gone on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import foreground
from storyloom_model.batch import predict, unet_pass
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import StoryJob
from storyloom_model.methods.names import METHODS
from storyloom_model.methods.registry import REGISTRY
from storyloom_model.noise import derived_seed
from storyloom_model.state import StoryState
from tests.model.test_model_denoiser import difference
from tests.model.tiny import finish, tiny_anchors, tiny_job
from tests.model.tiny_identity import identity

WORD = 2**32 - 1


@cache
def drawn(key: int, positions: int) -> Tensor:
    """What a key draws for each position of a layer, in Python's whole numbers: [N] in [0, 1)."""

    def mix(value: int) -> int:
        value = ((value ^ (value >> 16)) * 0x21F0AAAD) & WORD
        value = ((value ^ (value >> 15)) * 0x735A2D97) & WORD
        return value ^ (value >> 15)

    numbers = [mix((mix(key ^ positions) + place * 0x1E3779B1) & WORD) for place in range(positions)]
    return torch.tensor(numbers, dtype=torch.float64) / 2**32


def at_step(denoiser: Denoiser, job: StoryJob, step: int) -> StoryState:
    state = denoiser.encode(job)
    while state.step_index < step:
        denoiser.step([state])
    return state


def watched_step(denoiser: Denoiser, state: StoryState) -> list[tuple[str, Any, Tensor, Tensor]]:
    """Takes a step; the part of the UNet, the module, what went in and what came out of each self-attention layer."""
    seen: list[tuple[str, Any, Tensor, Tensor]] = []
    hooks = []
    for name, module in denoiser._unets["amsa-mask"].named_modules():
        if name.endswith("attn1"):
            part = name.split("_")[0]

            def keep(module: Any, given: Any, out: Tensor, part: str = part) -> None:
                seen.append((part, module, given[0], out))

            hooks.append((module, module.register_forward_hook(keep)))
    denoiser.step([state])
    for _, hook in hooks:
        hook.remove()
    return seen


def number_of(denoiser: Denoiser, module: Any) -> int:
    """The place of a self-attention layer."""
    layers = [one for name, one in denoiser._unets["amsa-mask"].named_modules() if name.endswith("attn1")]
    return next(place for place, one in enumerate(layers) if one is module)


def dense(
    attn: Any, hidden: Tensor, shows: Sequence[Tensor], sees: Sequence[bool], queries: Tensor | None = None
) -> Tensor:
    """Attention of the frames of one group, one frame after the other.

    Args:
        hidden: [n, N, C].
        shows: bool [N] for each frame, the positions that the others see.
        sees: for each frame, whether it sees the others'.
        queries: [n, N, C]; None: of the frames themselves.
    """
    q = attn.to_q(hidden) if queries is None else queries
    out = []
    for row in range(len(hidden)):
        known = [hidden[row]] + [hidden[j][shows[j]] for j in range(len(hidden)) if j != row and sees[row]]
        k, v = (project(torch.cat(known)) for project in (attn.to_k, attn.to_v))
        heads = [one.unflatten(-1, (attn.heads, -1)).transpose(0, 1).double() for one in (q[row], k, v)]
        weights = (heads[0] @ heads[1].transpose(1, 2) / math.sqrt(heads[0].shape[-1])).softmax(-1)
        out.append((weights @ heads[2]).transpose(0, 1).flatten(1).float())
    made: Tensor = attn.to_out[0](torch.stack(out))
    return made


def five_frames(**settings: Any) -> StoryJob:
    """One more than StoryDiffusion has id frames."""
    job = tiny_job(4, **settings)
    return dataclasses.replace(job, frames=(*job.frames, dataclasses.replace(job.frames[0], seed=99)))


@pytest.mark.parametrize(("guidance", "anchors"), [(1.0, 0), (3.0, 2)])
@torch.inference_mode()
def test_storydiffusion_shows_random_positions_of_the_first_frames(
    denoiser: Denoiser, guidance: float, anchors: int
) -> None:
    """Steps 0 (early), 2 (probability 0.7) and 7 (0.9) of ten."""
    settings: dict[str, Any] = {"method": "storydiffusion", "steps": 10, "guidance_scale": guidance}
    job = tiny_job(2, anchors=tiny_anchors(denoiser, anchors), **settings) if anchors else five_frames(**settings)
    group = job.group
    lends = [row >= 2 for row in range(group)] if anchors else [row < 4 for row in range(group)]
    seeds = [*(frame.seed for frame in job.frames), *(anchor.seed for anchor in job.anchors)]
    shared = set()
    for step, chance in ((0, None), (2, 0.7), (7, 0.9)):
        state = at_step(denoiser, job, step)
        for part, attn, hidden, out in watched_step(denoiser, state):
            positions, layer = hidden.shape[1], number_of(denoiser, attn)
            on = part == "up" and (chance is None or derived_seed(seeds[0], step, layer) < chance * 2**64)
            shared.add((step, part, on))
            rates = [(1.0 if chance is None else 0.5) if on and lend else 0.0 for lend in lends]
            shows = [
                drawn(derived_seed(seed, step) >> 32, positions) < rate for seed, rate in zip(seeds, rates, strict=True)
            ]
            sees = [not (chance is None and lend) for lend in lends]
            expected = torch.cat([dense(attn, branch, shows, sees) for branch in torch.split(hidden, group)])
            torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)
    assert {on for _, part, on in shared if part == "up"} == {True, False} or anchors == 0
    assert not any(on for _, part, on in shared if part != "up")


@pytest.mark.parametrize(("guidance", "anchors"), [(1.0, 0), (3.0, 2)])
@torch.inference_mode()
def test_consistory_shows_the_thinned_foreground_of_anchors(denoiser: Denoiser, guidance: float, anchors: int) -> None:
    """Steps 0 (nothing), 1 (queries mixed, a plain pass beside) and 3 of ten."""
    job = tiny_job(3, method="consistory", steps=10, guidance_scale=guidance, anchors=tiny_anchors(denoiser, anchors))
    group, rows = job.group, job.rows
    lends = [row >= 3 if anchors else row < 2 for row in range(group)]
    seeds = [*(frame.seed for frame in job.frames), *(anchor.seed for anchor in job.anchors)]
    state, maps = denoiser.encode(job), list[Tensor]()
    for step in range(4):
        seen = watched_step(denoiser, state)
        for part, attn, hidden, out in seen:
            on = part == "up" and step > 0
            assert len(hidden) == (2 * rows if step == 1 else rows)
            positions = hidden.shape[1]
            shows = [torch.zeros(positions, dtype=torch.bool)] * group
            if on:
                size = (math.isqrt(positions),) * 2
                small = (
                    F.interpolate(torch.stack(maps).mean(0), size=size, mode="bilinear")
                    if size != (8, 8)
                    else (torch.stack(maps).mean(0))
                )
                masks = foreground(small.flatten(2)).any(dim=1)
                shows = [
                    mask & (drawn(derived_seed(seed, step) >> 32, positions) < 0.5) & lend
                    for mask, seed, lend in zip(masks, seeds, lends, strict=True)
                ]
                assert any(bool(one.any()) for one in shows)
            own, plain = hidden[:rows], hidden[rows:]
            queries = attn.to_q(own)
            if step == 1 and part == "up":
                queries = 0.81836735 * attn.to_q(plain) + (1 - 0.81836735) * queries
            expected = [
                dense(attn, branch, shows, [True] * group, q)
                for branch, q in zip(torch.split(own, group), torch.split(queries, group), strict=True)
            ]
            expected += [dense(attn, frame, shows, [False]) for frame in plain[:, None]]
            torch.testing.assert_close(out, torch.cat(expected), atol=1e-4, rtol=0)
        maps.append(state.kept["maps"][-1])
        torch.testing.assert_close(state.previous_maps, torch.stack(maps).mean(0))


def test_consistory_remembers_twenty_steps() -> None:
    method, kept = REGISTRY["consistory"], dict[str, Tensor]()
    for step in range(25):
        mean, kept = method.maps(kept, torch.full((1, 1, 2, 2), float(step)))  # type: ignore[assignment]
    assert kept["maps"].shape == (20, 1, 1, 2, 2)
    assert torch.equal(mean, torch.full((1, 1, 2, 2), sum(range(5, 25)) / 20))


def test_fastcomposer_lets_identities_in_late(identity_denoiser: Denoiser) -> None:
    """After step 3 of ten; before that the text alone decides, and frames are made on their own at all times."""
    settings: dict[str, Any] = {"steps": 10, "identity_adapter": "faces", "guidance_scale": 1.0}
    silent = (identity("mia", 1, scale=0.0),)
    late, never, apart = (
        identity_denoiser.encode(tiny_job(2, **own, **settings))
        for own in (
            {"method": "fastcomposer", "identities": (identity("mia", 1),)},
            {"method": "fastcomposer", "identities": silent},
            {"cross_frame": False, "identities": silent},
        )
    )
    for step in range(6):
        for state in (late, never, apart):
            identity_denoiser.step([state])
        assert torch.equal(late.latents, never.latents) == (step <= 3)
        assert torch.equal(never.latents, apart.latents)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "storynizor"])
def test_a_method_is_determined_goes_on_from_a_checkpoint_and_matters(identity_denoiser: Denoiser, method: str) -> None:
    """Ten steps, so that ConsiStory mixes queries in the second; checkpoints before it and after it."""
    job = tiny_job(
        2, method=method, steps=10, solver="unipc", identities=(identity("mia", 1),), identity_adapter="faces"
    )
    going = identity_denoiser.encode(job)
    kept = []
    for step in range(5):
        if step in (1, 3):
            kept.append(identity_denoiser.save(going))
        identity_denoiser.step([going])
    for data in kept:
        state = identity_denoiser.restore(job, data)
        while state.step_index < 5:
            identity_denoiser.step([state])
        assert torch.equal(state.latents, going.latents)
        assert state.kept.keys() == going.kept.keys()
        for name, value in state.kept.items():
            assert torch.equal(value, going.kept[name])
    default = at_step(identity_denoiser, dataclasses.replace(job, method=""), 5)
    assert difference(default, going) > 1e-3


@torch.inference_mode()
def test_stories_of_different_methods_share_a_call(tiny_package: Path, denoiser: Denoiser) -> None:
    """At steps of their own; each as alone, up to rounding, whatever the others are. Only 1Prompt1Story is apart."""
    jobs = [
        tiny_job(2, seed=1),
        tiny_job(3, seed=2, steps=10, method="consistory", guidance_scale=1.0),
        five_frames(seed=3, steps=10, method="storydiffusion"),
        tiny_job(2, seed=4, steps=10, method="consistory"),
        tiny_job(2, seed=5, method="fastcomposer"),
    ]
    states = [at_step(denoiser, job, step) for job, step in zip(jobs, (0, 1, 0, 3, 1), strict=True)]
    assert len({state.key for state in states}) == 1
    assert denoiser.encode(tiny_job(2, method="oneprompt")).key != states[0].key
    unet = denoiser._unets["amsa-mask"]

    def made(own: list[StoryState]) -> list[Tensor]:
        return [one.values for one in predict(lambda inputs: unet_pass(unet, denoiser._rule, inputs), own)]

    alone = [made([state])[0] for state in states]
    for one, other in zip(made(states), alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert (
        max(float((one - other).abs().max()) for one, other in zip(made(states[::-1])[::-1], alone, strict=True)) < 2e-5
    )


def test_in_a_bucket_methods_do_not_notice_each_other(tiny_package: Path) -> None:
    """Padded, and with the rows of a plain pass beside, which are no story's."""
    shared = Denoiser.load(tiny_package, options=ExecutionOptions(buckets=(24,)), one_call=True)
    rows: list[int] = []
    shared._unets["amsa-mask"].register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    job, other = (tiny_job(2, seed=seed, steps=10, method="consistory") for seed in (1, 2))
    expected = at_step(shared, job, 3)
    state = shared.encode(job)
    beside = [shared.encode(one) for one in (other, tiny_job(2, seed=3, method="storydiffusion"), tiny_job(2, seed=4))]
    for _ in range(3):
        shared.step([state, *beside])
    assert set(rows) == {24}
    assert torch.equal(state.latents, expected.latents)


def test_what_is_no_method_is_refused(denoiser: Denoiser) -> None:
    assert set(REGISTRY) == set(METHODS)
    with pytest.raises(JobError, match="no story method magic; use one of storynizor, storydiffusion"):
        denoiser.encode(tiny_job(1, method="magic"))


def test_alone_or_switched_off_a_method_is_the_same_as_none(denoiser: Denoiser) -> None:
    """Nothing is shared where there is one frame, or where the story wants none of it."""
    cases = [(method, *way) for method in ("storydiffusion", "consistory") for way in ((1, True), (2, False))]
    # 1Prompt1Story's text begins with the identity even in a single frame.
    for method, frames, crosses in [*cases, ("oneprompt", 2, False)]:
        jobs = [tiny_job(frames, cross_frame=crosses, steps=1, method=name) for name in (method, "")]
        first, second = (finish(denoiser, job) for job in jobs)
        assert torch.equal(first.latents, second.latents)
