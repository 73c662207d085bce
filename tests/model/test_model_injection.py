"""ConsiStory's feature injection: correspondences and layers against plain formulas, runs, batches, checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import foreground
from storyloom_model.batch import collate, predict, unet_pass
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import StoryJob
from storyloom_model.methods.correspondence import smoothed, sources
from storyloom_model.methods.schedule import injected_steps, mixed_steps
from storyloom_model.methods.sharing import injected
from storyloom_model.noise import derived_seed
from storyloom_model.state import StoryState
from tests.model.test_model_denoiser import difference
from tests.model.test_model_methods import at_step, dense, drawn, number_of, watched_step
from tests.model.tiny import finish, tiny_anchors, tiny_job
from tests.model.tiny_identity import identity

STEPS = 10
"""Queries are mixed in step 1, features injected in steps 1 to 3 of the second run."""


def twice(frames: int = 3, **fields: Any) -> StoryJob:
    wanted = {"method": "consistory", "steps": STEPS, "feature_injection": True}
    return tiny_job(frames, **(wanted | fields))


def otsu_below(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values the rule of Otsu puts below, in 256 bins, by trying every threshold."""
    if values.min() == values.max():
        return np.zeros(len(values), bool)
    bins = np.minimum(((values - values.min()) / (values.max() - values.min()) * 256).astype(int), 255)
    best, chosen = -1.0, 0
    for threshold in range(255):
        low, high = bins[bins <= threshold], bins[bins > threshold]
        between = len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0
        if between > best:
            best, chosen = between, threshold
    return bins <= chosen


def plain_sources(
    features: Tensor, masks: Tensor, lends: Sequence[bool], takes: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Position by position; and how near each is to the threshold: True where rounding cannot decide."""
    frames, height, width = masks.shape
    resized = F.interpolate(features, size=(height, width), mode="bilinear").flatten(2).double().numpy()
    inside = masks.flatten(1).numpy()
    positions = height * width
    found = np.arange(frames * positions).reshape(frames, positions)
    sure = np.ones_like(found, dtype=bool)
    for frame in range(frames):
        lenders = [other for other in range(frames) if lends[other] and other != frame]
        if not takes[frame] or not lenders:
            continue
        best, where = np.full(positions, np.inf), found[frame].copy()
        for position in range(positions):
            own = resized[frame][:, position]
            for other in lenders:
                for place in range(positions):
                    one = resized[other][:, place]
                    distance = (
                        1 - one @ own / np.linalg.norm(one) / np.linalg.norm(own) if inside[other, place] else 2.0
                    )
                    if distance < best[position] - 1e-6:
                        best[position], where[position] = distance, other * positions + place
        below = otsu_below(best)
        edge = best[below].max() / 2 + best[~below].min() / 2 if below.any() and (~below).any() else np.inf
        sure[frame] = np.abs(best - edge) > (best.max() - best.min()) / 128
        found[frame] = np.where(inside[frame] & below, where, found[frame])
    return torch.from_numpy(found), torch.from_numpy(sure)


@pytest.mark.parametrize("seed", range(4))
def test_correspondences_are_found_position_by_position(seed: int) -> None:
    """Features of half the size, frames that lend or take or neither, a frame in whose mask there is nothing."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(4, 5, 3, 2, generator=draw)
    masks = torch.rand(4, 6, 4, generator=draw) < 0.6
    masks[3] = False
    lends, takes = [(True, True, False, True), (True, False, False, False)][seed % 2], (True, True, True, seed < 2)
    made = sources(features, masks, lends, takes)
    expected, sure = plain_sources(features, masks, lends, takes)
    assert torch.equal(made[sure], expected[sure])
    assert float(sure.float().mean()) > 0.8
    assert (made != torch.arange(4 * 24).view(4, 24)).any()


def test_nothing_corresponds_where_nobody_is() -> None:
    """All distances are alike then, and Otsu's rule tells nothing apart."""
    features, masks = torch.randn(3, 5, 2, 2), torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[2] = True
    own = torch.arange(48).view(3, 16)
    assert torch.equal(sources(features, masks, (True, True, False), (True,) * 3), own)
    assert torch.equal(sources(features, ~masks, (False,) * 3, (True,) * 3), own)


def test_smoothing_is_a_gaussian_over_every_channel() -> None:
    features = torch.randn(2, 3, 4, 5)
    weights = torch.tensor([[math.exp(-(x * x + y * y) / 2) for x in (-1, 0, 1)] for y in (-1, 0, 1)])
    weights /= weights.sum()
    padded, made = F.pad(features, (1, 1, 1, 1)), smoothed(features)
    for row in range(4):
        for column in range(5):
            around = (padded[:, :, row : row + 3, column : column + 3] * weights).sum(dim=(-2, -1))
            torch.testing.assert_close(made[:, :, row, column], around, atol=1e-6, rtol=0)


def test_each_takes_from_those_before_it_as_they_have_become() -> None:
    """Row 0 takes of row 1 as it was, row 1 of row 0 as it is, row 2 of both as they are; row 3 has no weight."""
    out = torch.arange(8.0).view(4, 2, 1)
    source = torch.tensor([[2, 1], [0, 3], [0, 2], [0, 1]])
    made = injected(out, torch.tensor([0.8, 0.8, 0.8, 0.0]), source, torch.tensor([0, 1, 2, 2]))
    first = 0.8 * 2.0 + 0.2 * 0.0
    second = 0.8 * first + 0.2 * 2.0
    expected = [[first, 1.0], [second, 3.0], [0.8 * first + 0.2 * 4.0, 0.8 * second + 0.2 * 5.0], [6.0, 7.0]]
    torch.testing.assert_close(made[..., 0], torch.tensor(expected))


@pytest.mark.parametrize(("guidance", "anchors"), [(1.0, 0), (3.0, 2)])
@torch.inference_mode()
def test_the_second_run_takes_features_of_the_first(denoiser: Denoiser, guidance: float, anchors: int) -> None:
    """Every self-attention layer of steps 0, 1, 3 and 4 of the second run."""
    job = twice(guidance_scale=guidance, anchors=tiny_anchors(denoiser, anchors))
    group, rows = job.group, job.rows
    lends = [row >= 3 if anchors else row < 2 for row in range(group)]
    seeds = [*(frame.seed for frame in job.frames), *(anchor.seed for anchor in job.anchors)]
    state, features, given = denoiser.encode(job), list[Tensor](), list[Tensor]()
    unet = denoiser._unets["amsa-mask"]
    hook = unet.up_blocks[0].register_forward_hook(lambda _, __, out: features.append(out))
    first = unet.conv_in.register_forward_pre_hook(lambda _, latents: given.append(latents[0]))
    watched = min(range(STEPS), key=lambda step: abs(state.solver._timesteps[step] - 261))
    # Of steps 1000, 900, ..., 100: with its own time the nearest is 300.
    assert watched == 7
    try:
        while state.step_index < STEPS:
            asked = state.wants_features
            denoiser.step([state])
            assert asked == (state.step_index - 1 == watched)
    finally:
        hook.remove()
    assert state.previous_maps is not None
    masks = foreground(state.previous_maps.flatten(2)).any(dim=1).view(group, 8, 8)
    own, _ = plain_sources(
        smoothed(features[watched][rows - group : rows]), masks, lends, [row < 3 for row in range(group)]
    )
    assert (own != torch.arange(group * 64).view(group, 64)).any()

    maps, acted = list[Tensor](), set()
    for step in range(5):
        assert state.step_index == STEPS + step
        seen = watched_step(denoiser, state)
        if step == 0:
            first.remove()
            assert torch.equal(given[STEPS], given[0])  # The same noise.
            torch.testing.assert_close(state.injection.sources, own)  # type: ignore[union-attr]
        for part, attn, hidden, out in seen:
            positions = hidden.shape[1]
            shows = [torch.zeros(positions, dtype=torch.bool)] * group
            if part == "up" and step:
                small = F.interpolate(torch.stack(maps).mean(0), size=(math.isqrt(positions),) * 2, mode="bilinear")
                shows = [
                    mask & (drawn(derived_seed(seed, step) >> 32, positions) < 0.5) & lend
                    for mask, seed, lend in zip(foreground(small.flatten(2)).any(dim=1), seeds, lends, strict=True)
                ]
            queries = attn.to_q(hidden[:rows])
            if step == 1 and part == "up":
                queries = 0.81836735 * attn.to_q(hidden[rows:]) + (1 - 0.81836735) * queries
            expected = [
                dense(attn, branch, shows, [True] * group, q)
                for branch, q in zip(torch.split(hidden[:rows], group), torch.split(queries, group), strict=True)
            ]
            if 1 <= step <= 3 and part != "mid" and positions == 64:
                acted.add((part, number_of(denoiser, attn)))
                for row in range(3):  # The first two are the anchors where there are no others.
                    mine = torch.arange(row * 64, row * 64 + 64)
                    taken = expected[-1].flatten(0, 1)[own[row]]
                    changed = (own[row] != mine)[:, None]
                    expected[-1][row] = torch.where(changed, 0.8 * taken + 0.2 * expected[-1][row], expected[-1][row])
            plain = [dense(attn, frame, shows, [False]) for frame in hidden[rows:, None]]
            torch.testing.assert_close(out, torch.cat([*expected, *plain]), atol=1e-4, rtol=0)
        maps.append(state.kept["maps"][-1])
    assert {part for part, _ in acted} == {"down", "up"}


def test_without_correspondences_the_second_run_is_the_first(identity_denoiser: Denoiser) -> None:
    """To the bit: noise, solver, masks and everything else begin anew."""
    job = twice(2, solver="unipc", identities=(identity("mia", 1),), identity_adapter="faces")
    state = at_step(identity_denoiser, job, STEPS)
    once = finish(identity_denoiser, dataclasses.replace(job, feature_injection=False))
    assert torch.equal(state.latents, once.latents)
    assert (once.steps, state.steps, state.done) == (STEPS, 2 * STEPS, False)
    identity_denoiser.step([state])
    assert state.injection is not None
    assert state.injection.sources is not None
    state.injection.sources = torch.arange(state.injection.sources.numel()).view_as(state.injection.sources)
    while not state.done:
        identity_denoiser.step([state])
    assert torch.equal(state.latents, once.latents)
    assert difference(once, finish(identity_denoiser, job)) > 1e-3


def test_it_goes_on_from_checkpoints_of_both_runs_to_the_bit(denoiser: Denoiser) -> None:
    """Before its features are known, after, at the end of the first run, and in the second while it injects."""
    job = twice(2, solver="unipc")
    state, kept = denoiser.encode(job), dict[int, bytes]()
    while not state.done:
        if state.step_index in (3, 8, STEPS, STEPS + 1, STEPS + 6):
            kept[state.step_index] = denoiser.save(state)
        denoiser.step([state])
    for step, data in kept.items():
        again = denoiser.restore(job, data)
        assert (again.step_index, again.done) == (step, False)
        while not again.done:
            denoiser.step([again])
        assert torch.equal(again.latents, state.latents)


@torch.inference_mode()
def test_stories_do_not_notice_that_others_inject(denoiser: Denoiser) -> None:
    """In one call at steps where one's features are wanted, others inject, with and without a plain pass."""
    jobs = [tiny_job(2, seed=1), twice(3, seed=2, guidance_scale=1.0), twice(2, seed=3), twice(2, seed=4), tiny_job(1)]
    states = [at_step(denoiser, job, step) for job, step in zip(jobs, (0, 7, STEPS + 1, STEPS + 3, 1), strict=True)]
    assert len({state.key for state in states}) == 1
    unet = denoiser._unets["amsa-mask"]

    def made(own: list[StoryState]) -> list[Any]:
        return predict(lambda inputs: unet_pass(unet, denoiser._rule, inputs), own)

    alone = [made([state])[0] for state in states]
    for order in (states, states[::-1]):
        for state, one in zip(order, made(order), strict=True):
            other = alone[states.index(state)]
            torch.testing.assert_close(one.values, other.values, atol=3e-5, rtol=0)
            assert (one.features is None) == (state is not states[1])
    torch.testing.assert_close(made(states)[1].features, alone[1].features, atol=3e-5, rtol=0)
    assert not {"features", "method.inject_weight"} & collate([states[0], states[4]]).keys()


def test_in_a_bucket_others_change_nothing(tiny_package: Path) -> None:
    shared = Denoiser.load(tiny_package, options=ExecutionOptions(buckets=(12,)), one_call=True)
    job, other = (twice(2, seed=seed, guidance_scale=1.0) for seed in (1, 2))
    expected, state = at_step(shared, job, STEPS + 4), shared.encode(job)
    beside = [shared.encode(one) for one in (other, tiny_job(2, seed=3, steps=20, guidance_scale=1.0))]
    while state.step_index < STEPS + 4:
        shared.step([state, *beside])
    assert torch.equal(state.latents, expected.latents)


def test_it_takes_the_method_and_somebody_to_take_from(denoiser: Denoiser) -> None:
    """A single frame, frames on their own and frames of nobody are made once."""
    with pytest.raises(
        JobError, match="feature injection is of story method consistory; use it in place of storynizor"
    ):
        denoiser.encode(tiny_job(2, feature_injection=True))
    for job in (twice(1), twice(2, cross_frame=False)):
        assert (job.runs, denoiser.encode(job).steps) == (1, STEPS)
    assert twice(2).runs == 2
    assert twice(1, anchors=tiny_anchors(denoiser, 1)).runs == 2


@given(st.integers(1, 100))
@settings(max_examples=100)
def test_steps_are_those_of_the_authors(steps: int) -> None:
    """Of their 50: queries to step 5, but for step 0, in which nothing is shared; features from 5 to 16."""
    assert list(mixed_steps(steps)) == [step for step in range(1, steps) if step <= steps // 10]
    assert list(injected_steps(steps)) == [step for step in range(steps) if steps // 10 <= step <= steps // 3]
