"""Stories in two passes: from the prompts alone, then again from the start step with everybody's face in its place."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyloom_model import ComposedPrompt, compose
from storyloom_model.batch import Tensors, collate, unet_pass
from storyloom_model.checkpoint import CheckpointError
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.jobs import Redenoising, Region, StoryJob
from storyloom_model.redenoising.plan import part, radius
from storyloom_model.solvers import Solver
from storyloom_model.state import StoryState
from storyloom_model.step_rows import step_rows, total_steps
from tests.model.test_model_denoiser import run_batch
from tests.model.tiny import CAST, finish, tiny_anchors, tiny_job
from tests.model.tiny_identity import identity

START, STEPS = 1, 4


def regions(*names: str) -> tuple[Region, ...]:
    prompts = [compose("", f"{{{name}}}", CAST, []) for name in names]
    return tuple(
        Region(name, prompt) for name, prompt in zip(names, prompts, strict=True) if isinstance(prompt, ComposedPrompt)
    )


def two_pass_job(frames: int = 3, *names: str, start: int = START, **settings: Any) -> StoryJob:
    """Mia alone, both, Bo alone, both; each of ``names`` (Mia and Bo) gets an identity."""
    names = names or ("mia", "bo")
    identities = tuple(identity(name, seed) for seed, name in enumerate(names))
    plan = {field: settings.pop(field) for field in ("margin", "growth") if field in settings}
    fields: dict[str, Any] = {"steps": STEPS, "identity_adapter": "faces", "identities": identities}
    redenoising = Redenoising(start, regions(*names), **plan)
    return tiny_job(frames, **(fields | {"redenoising": redenoising} | settings))


def plain(job: StoryJob) -> StoryJob:
    """The same story without anybody's face."""
    return dataclasses.replace(job, identities=(), redenoising=None)


@pytest.fixture
def rows_of_calls(identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each UNet call."""
    rows: list[int] = []
    call = identity_denoiser._runner.call

    def counting(variant: Any, inputs: Tensors) -> Tensors:
        rows.append(len(inputs["latents"]))
        return call(variant, inputs)

    monkeypatch.setattr(identity_denoiser._runner, "call", counting)
    return rows


def box(picture: NDArray[np.uint8], words: Any) -> NDArray[np.bool_]:
    """Finds everybody: the first at the left, the second at the right."""
    found = np.zeros((len(words), *picture.shape[:2]), np.bool_)
    found[0, 16:40, :16] = True
    found[1:, 16:40, -16:] = True
    return found


def nobody(picture: NDArray[np.uint8], words: Any) -> NDArray[np.bool_]:
    return np.zeros((len(words), *picture.shape[:2]), np.bool_)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_second_pass_costs_its_characters_for_its_steps(
    identity_denoiser: Denoiser, rows_of_calls: list[int], guidance: float
) -> None:
    """At most (1 - start / steps) times the characters more evaluations than one pass, whoever is in which frame."""
    job = two_pass_job(3, guidance_scale=guidance)
    branches = 1 if guidance == 1 else 2
    state = finish(identity_denoiser, job)
    first, second = rows_of_calls[:STEPS], rows_of_calls[STEPS:]
    assert first == [3 * branches] * STEPS
    assert step_rows(job)[-1].groups == (2, 2)  # Mia is in the first two frames, Bo in the last two.
    assert second == [4 * branches] * (STEPS - START)
    assert sum(second) <= (1 - START / STEPS) * len(job.identities) * sum(first)
    assert (state.step_index, state.steps) == (2 * STEPS - START, total_steps(job))

    rows_of_calls.clear()
    both = dataclasses.replace(job, frames=(job.frames[1],) * 2)
    finish(identity_denoiser, both)  # Everybody is in every frame: the bound is reached.
    assert sum(rows_of_calls[STEPS:]) == (1 - START / STEPS) * 2 * sum(rows_of_calls[:STEPS])


def test_progress_is_one_count_over_both_passes(identity_denoiser: Denoiser) -> None:
    state = identity_denoiser.encode(two_pass_job(3))
    seen = []
    while not state.done:
        seen.append((state.step_index, state.rows))
        identity_denoiser.step([state])
        assert identity_denoiser.preview(state, [0]).shape == (1, 8, 8, 3)
    assert seen == [(step, 6) for step in range(STEPS)] + [(step, 8) for step in range(STEPS, 2 * STEPS - START)]
    assert identity_denoiser.looks(state, 1, identity_denoiser.decode(state, [1])[0]).keys() == {"mia", "bo"}


@pytest.mark.parametrize("solver", ["ddim", "euler", "unipc"])
def test_where_nobody_is_found_the_picture_stays(
    identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    """To the bit: the second pass goes the way of the first, from its very latents and solver history."""
    monkeypatch.setattr(identity_denoiser, "character_finder", nobody)
    job = two_pass_job(2, solver=solver, steps=5, start=3)
    made, before = finish(identity_denoiser, job), finish(identity_denoiser, plain(job))
    assert torch.equal(made.latents, before.latents)


def test_only_what_a_mask_reaches_changes(identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_denoiser, "character_finder", box)
    job = two_pass_job(3, "mia", margin=0, growth=0)
    made, before = finish(identity_denoiser, job), finish(identity_denoiser, plain(job))
    changed = (made.latents != before.latents).any(dim=1)
    assert not changed[2].any()  # Bo is alone there.
    for frame in (0, 1):
        assert changed[frame, 2:5, :2].all()
        assert not changed[frame, :, 2:].any()
    wider = finish(identity_denoiser, two_pass_job(3, "mia", margin=8, growth=20))
    assert ((wider.latents != before.latents).any(dim=1)[0]).sum() > changed[0].sum()


def test_a_region_prompt_acts_in_its_own_place(identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_denoiser, "character_finder", box)
    job = two_pass_job(2, "mia", margin=0, growth=0)
    prompt = compose("", "the {mia} in a blue coat", CAST, [])
    assert job.redenoising is not None
    assert isinstance(prompt, ComposedPrompt)
    own = dataclasses.replace(job.redenoising, regions=(Region("mia", prompt),))
    made, before = (finish(identity_denoiser, each) for each in (dataclasses.replace(job, redenoising=own), job))
    changed = (made.latents != before.latents).any(dim=1)
    assert changed[:, 2:5, :2].all()
    assert not changed[:, :, 2:].any()


def test_who_has_no_place_is_told(identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bo is not seen; nobody misses him where he is not shown, or before the second pass. A checkpoint knows."""

    def mia(picture: NDArray[np.uint8], words: Any) -> NDArray[np.bool_]:
        return box(picture, words) & np.array(["girl" in each for each in words])[:, None, None]

    monkeypatch.setattr(identity_denoiser, "character_finder", mia)
    job = two_pass_job(2)
    state = identity_denoiser.encode(job)
    assert identity_denoiser.missing(state, 1) == ()
    while not state.done:
        identity_denoiser.step([state])
    for one in (state, identity_denoiser.restore(job, identity_denoiser.save(state))):
        assert [identity_denoiser.missing(one, frame) for frame in range(2)] == [(), ("bo",)]
    assert identity_denoiser.missing(finish(identity_denoiser, plain(job)), 0) == ()


def test_faces_are_those_of_the_references(identity_denoiser: Denoiser) -> None:
    """Mia's change nothing of the frame in which she is not, and nothing when they count nothing."""
    job = two_pass_job(3, cross_frame=False)
    one = finish(identity_denoiser, job)
    other = dataclasses.replace(job, identities=(identity("mia", 9), job.identities[1]))
    two = finish(identity_denoiser, other)
    changed = (one.latents != two.latents).flatten(1).any(dim=1)
    assert changed.tolist() == [True, True, False]


def raw(denoiser: Denoiser, state: StoryState) -> Tensor:
    """What the UNet says of all rows of a story, without guidance: [branches, frames, C, h, w]."""
    found = unet_pass(denoiser._unets["amsa-mask"], denoiser._rule, collate([state]))
    return torch.stack(found["values"].chunk(2))


def grown(masks: NDArray[np.bool_], order: list[int], reach: float) -> NDArray[np.bool_]:
    """Masks [K, h, w] grown by comparing every position with every other, the first in order taking first."""
    height, width = masks.shape[1:]
    result = masks.copy()
    for place in order:
        rows, columns = np.nonzero(masks[place])
        for y, x in np.ndindex(height, width):
            near = len(rows) and 8 * np.sqrt(((rows - y) ** 2 + (columns - x) ** 2).min()) <= reach
            if near and not result[:, y, x].any():
                result[place, y, x] = True
    return result


@torch.inference_mode()
def test_it_is_what_the_paper_says(identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain formulas beside the engine: both branches cached and mixed by masks, then guided; the first steps of a
    fresh solver are taken again to come to where the second pass starts.
    """
    monkeypatch.setattr(identity_denoiser, "character_finder", box)
    job = two_pass_job(2, solver="unipc", steps=5, start=2, margin=8, growth=24)
    state = identity_denoiser.encode(job)
    assert state.second is not None
    mia, bo = state.second.regions
    cached = []
    for _ in range(job.steps):
        cached.append(raw(identity_denoiser, state))
        identity_denoiser.step([state])

    def guided(branches: Tensor) -> Tensor:
        return branches[0] + job.guidance_scale * (branches[1] - branches[0])

    again = Solver("unipc", identity_denoiser._schedule, job.steps)
    start = identity_denoiser.encode(job).latents
    for step in range(2):
        start, _ = again.advance(start, guided(cached[step]))
    own = box(np.zeros((64, 64, 3), np.uint8), "12")[:, ::8, ::8]  # Mia is alone in the first frame.
    of_frames = [grown(own * np.array([[[True]], [[frame == 1]]]), [0, 1], 8) for frame in range(2)]
    latents = start
    for step in range(2, job.steps):
        for region, frames in ((mia, [0, 1]), (bo, [1])):
            region.solver, region.latents = again, latents[frames]
        found = [raw(identity_denoiser, mia), raw(identity_denoiser, bo)]
        mixed = cached[step].clone()
        for frame in range(2):
            masks = grown(of_frames[frame], [0, 1], radius(24, step, 2, job.steps))
            for place, row in ((0, frame), (1, 0)):
                mask = torch.from_numpy(masks[place])
                if mask.any():
                    mixed[:, frame] = torch.where(mask, found[place][:, row], mixed[:, frame])
        latents, _ = again.advance(latents, guided(mixed))
        identity_denoiser.step([state])
        torch.testing.assert_close(state.latents, latents, atol=2e-4, rtol=0)
    assert state.done


def test_the_passes_of_stories_do_not_mix(identity_denoiser: Denoiser) -> None:
    """Stories in their first and second pass, with and without identities, joining as others are under way."""
    jobs = [
        two_pass_job(2, steps=3),
        two_pass_job(3, "bo", seed=2, steps=3, start=0, solver="unipc", guidance_scale=1.0),
        dataclasses.replace(two_pass_job(1, "mia", seed=4), redenoising=None),
    ]
    alone = [finish(identity_denoiser, job) for job in jobs]
    for state, own in zip(run_batch(identity_denoiser, jobs, [0, 2, 1]), alone, strict=True):
        assert torch.equal(state.latents, own.latents)


def test_rows_of_a_second_pass_share_calls(
    identity_denoiser: Denoiser, rows_of_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_denoiser, "_one_call", True)
    monkeypatch.setattr(identity_denoiser, "character_finder", box)
    job, beside = two_pass_job(2, start=2), plain(two_pass_job(1, steps=6))
    together = run_batch(identity_denoiser, [job, beside], [0, 0])
    assert rows_of_calls == [6] * 4 + [8] * 2  # Four rows and two; six and two.
    alone = [finish(identity_denoiser, one) for one in (job, beside)]
    for state, own in zip(together, alone, strict=True):
        torch.testing.assert_close(state.latents, own.latents, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("solver", "start", "guidance", "cross_frame"),
    [("ddim", 0, 1.0, True), ("euler", 1, 3.0, False), ("unipc", 1, 3.0, True)],
)
def test_a_story_goes_on_in_either_pass(
    identity_denoiser: Denoiser, solver: str, start: int, guidance: float, cross_frame: bool
) -> None:
    """Before and after the start step, between the passes, and in the second."""
    job = two_pass_job(2, steps=3, start=start, solver=solver, guidance_scale=guidance, cross_frame=cross_frame)
    going = identity_denoiser.encode(job)
    kept = []
    while not going.done:
        identity_denoiser.step([going])
        kept.append(identity_denoiser.save(going))
    for step, data in enumerate(kept, start=1):
        state = identity_denoiser.restore(job, data)
        assert (state.step_index, state.done) == (step, step == total_steps(job))
        while not state.done:
            identity_denoiser.step([state])
        assert torch.equal(state.latents, going.latents)
        assert torch.equal(state.predicted, going.predicted)


def test_a_story_made_twice_has_its_second_pass_after_both_runs(identity_denoiser: Denoiser) -> None:
    """Two runs of two steps, then the last step once more; where nobody is found it ends as the second run did."""
    job = two_pass_job(2, steps=2, start=1, guidance_scale=1.0, method="consistory", feature_injection=True)
    going, kept = identity_denoiser.encode(job), list[bytes]()
    while not going.done:
        identity_denoiser.step([going])
        kept.append(identity_denoiser.save(going))
    assert len(kept) == total_steps(job) == 5
    for step, data in enumerate(kept, start=1):
        state = identity_denoiser.restore(job, data)
        assert state.step_index == step
        while not state.done:
            identity_denoiser.step([state])
        assert torch.equal(state.latents, going.latents)
    runs = finish(identity_denoiser, dataclasses.replace(plain(job), feature_injection=True))
    assert not torch.equal(runs.latents, going.latents)
    identity_denoiser.character_finder = nobody
    try:
        assert torch.equal(finish(identity_denoiser, job).latents, runs.latents)
    finally:
        identity_denoiser.character_finder = None


def test_a_checkpoint_holds_what_is_still_needed(identity_denoiser: Denoiser) -> None:
    """The predictions from the start step on: more with each step of the first pass, fewer with each of the second."""
    state = identity_denoiser.encode(two_pass_job(2, start=2, cross_frame=False))
    sizes, held = [], []
    while not state.done:
        identity_denoiser.step([state])
        sizes.append(len(identity_denoiser.save(state)))
        held.append(state.nbytes)
    one = 4 * state.latents.numel()
    assert sizes[3] < 6 * one + 8 * 8 * 4 * 2 * 4 + 2500  # Latents twice, expected end, two predictions; maps.
    assert sizes[1] < sizes[2] < sizes[3] > sizes[4] > sizes[5]
    assert held[3] > held[4] > held[5]


def test_a_checkpoint_is_of_its_plan(identity_denoiser: Denoiser) -> None:
    job = two_pass_job(2)
    state = identity_denoiser.encode(job)
    data = identity_denoiser.save(state)
    assert job.redenoising is not None
    for change in ({"start": 2}, {"growth": 49}, {"margin": 9}):
        other = dataclasses.replace(job, redenoising=dataclasses.replace(job.redenoising, **change))
        with pytest.raises(CheckpointError, match="of another job"):
            identity_denoiser.restore(other, data)


def test_anchors_lend_their_looks_to_the_first_pass_alone(
    identity_denoiser: Denoiser, rows_of_calls: list[int]
) -> None:
    anchors = tiny_anchors(identity_denoiser, 2)
    rows_of_calls.clear()
    state = finish(identity_denoiser, two_pass_job(2, anchors=anchors))
    assert rows_of_calls == [8] * STEPS + [6] * (STEPS - START)
    assert len(identity_denoiser.final_latents(state)) == 2


def test_an_adapter_that_changes_weights_does_so_in_both_passes(identity_denoiser: Denoiser) -> None:
    """A story keeps its compatibility key."""
    state = identity_denoiser.encode(two_pass_job(2, identity_adapter="changed"))
    key = state.key
    assert key.variant.identity == "changed"
    assert state.second is not None
    assert {region.key for region in state.second.regions} == {key}
    while not state.done:
        identity_denoiser.step([state])


def test_a_window_has_the_regions_of_its_own_characters() -> None:
    job = two_pass_job(4)
    first, third = part(job, [0]), part(job, [2])
    assert first.redenoising is not None
    assert [region.character for region in first.redenoising.regions] == ["mia"]
    assert step_rows(third)[-1].groups == (1,)
    assert [one.character for one in third.identities] == ["bo"]
    nobody_here = part(two_pass_job(4, "mia"), [2])
    assert nobody_here.redenoising is None
    assert (nobody_here.identities, total_steps(nobody_here)) == ((), STEPS)


def with_plan(**changes: Any) -> StoryJob:
    job = two_pass_job(2)
    assert job.redenoising is not None
    return dataclasses.replace(job, redenoising=dataclasses.replace(job.redenoising, **changes))


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (dataclasses.replace(two_pass_job(2), identities=()), "none has any; add some, or leave it out"),
        (with_plan(regions=regions("mia")), "regions for mia, and mia, bo have references; give each of these one"),
        (with_plan(regions=(Region("mia", ComposedPrompt("a girl")), *regions("bo"))), "of mia does not name the"),
        (with_plan(start=4), "starts at step 4 of 4; use 0 to 3"),
        (with_plan(start=-1), "starts at step -1 of 4; use 0 to 3"),
        (with_plan(margin=513), "mask margin of 513 pixels; use 0 to 512"),
        (with_plan(growth=-1), "mask growth of -1 pixels; use 0 to 512"),
        (two_pass_job(2, identity_adapter="gone"), "no identity adapter called gone"),
    ],
)
def test_what_cannot_be_made_says_what_to_change(identity_denoiser: Denoiser, job: StoryJob, words: str) -> None:
    with pytest.raises(JobError, match=words):
        identity_denoiser.encode(job)


def test_a_finder_that_breaks_leaves_the_story_as_it_was(
    identity_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(picture: NDArray[np.uint8], words: Any) -> NDArray[np.bool_]:
        raise OSError("gone")

    job = two_pass_job(2)
    state = identity_denoiser.encode(job)
    for _ in range(STEPS):
        identity_denoiser.step([state])
    with monkeypatch.context() as patched:
        patched.setattr(identity_denoiser, "character_finder", broken)
        with pytest.raises(OSError, match="gone"):
            identity_denoiser.step([state])
    assert state.step_index == STEPS
    while not state.done:
        identity_denoiser.step([state])
    assert torch.equal(state.latents, finish(identity_denoiser, job).latents)
