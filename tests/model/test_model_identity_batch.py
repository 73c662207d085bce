"""Stories with references through the engine: each has its own, whoever shares its batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_model.batch import Capacity, collate, pad, predict, unet_pass
from storyloom_model.checkpoint import CheckpointError
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.execution import ExecutionOptions
from storyloom_model.graphs import GraphCache
from storyloom_model.jobs import Identity, StoryJob
from tests.model.test_model_denoiser import difference, run_batch
from tests.model.test_model_graphs import PretendedCapture
from tests.model.tiny import finish, tiny_anchors, tiny_job
from tests.model.tiny_identity import identity, tiny_features


def cast_job(*identities: Identity, frames: int = 2, adapter: str = "faces", **settings: Any) -> StoryJob:
    """Mia alone, then both; two of three steps are enough for all that is to be seen."""
    return tiny_job(frames, identities=identities, identity_adapter=adapter, **({"steps": 3} | settings))


def step_once(denoiser: Denoiser, jobs: list[StoryJob], *, together: bool) -> list[torch.Tensor]:
    """What the UNet predicts of each story in its first step."""
    states = [denoiser.encode(job) for job in jobs]
    unet = denoiser._unets["amsa-mask"]
    calls = [states] if together else [[state] for state in states]
    with torch.inference_mode():
        found = [predict(lambda inputs: unet_pass(unet, denoiser._rule, inputs), own) for own in calls]
    return [prediction.values for predictions in found for prediction in predictions]


@pytest.mark.parametrize("adapter", ["faces", "shared", "changed"])
def test_references_of_two_stories_do_not_mix(identity_denoiser: Denoiser, adapter: str) -> None:
    """Swapped between two stories of one batch, they change both, to what each would be alone."""
    first, second = identity("mia", 1), identity("mia", 2)
    jobs = [cast_job(one, seed=seed, adapter=adapter) for seed in (1, 2) for one in (first, second)]
    alone = [finish(identity_denoiser, job) for job in jobs]
    for places in ((0, 3), (1, 2)):
        states = run_batch(identity_denoiser, [jobs[place] for place in places], [0, 0])
        for place, state in zip(places, states, strict=True):
            assert torch.equal(state.latents, alone[place].latents)
    assert difference(alone[0], alone[1]) > 1e-2
    assert difference(alone[2], alone[3]) > 1e-2


def test_references_do_not_mix_in_one_call(identity_package: Path, identity_denoiser: Denoiser) -> None:
    """Embeddings, numbers of characters, streams, scales and lengths differ, and one story has none."""
    two = Identity("bo", tiny_features(4, references=3), scale=0.5)
    jobs = [
        cast_job(identity("mia", 1), seed=1),
        cast_job(identity("mia", 2), two, seed=2, guidance_scale=1.0),
        cast_job(identity("bo", 5), frames=3, seed=3, adapter="shared"),
        tiny_job(2, seed=4, steps=3),
    ]
    alone = step_once(identity_denoiser, jobs, together=False)
    shared = step_once(identity_denoiser, jobs, together=True)
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    swapped = [cast_job(identity("mia", 2), seed=1), *jobs[1:]]
    others = step_once(identity_denoiser, swapped, together=True)
    assert float((others[0] - shared[0]).abs().max()) > 1e-3
    for one, other in zip(others[1:], shared[1:], strict=True):
        assert torch.equal(one, other)

    one_call = Denoiser.load(identity_package, one_call=True)
    states = run_batch(one_call, jobs, [0, 1, 1, 2])
    for state, job in zip(states, jobs, strict=True):
        assert difference(state, finish(identity_denoiser, job)) < 0.02


identities = st.lists(
    st.builds(
        Identity,
        st.sampled_from(["mia", "bo"]),
        st.builds(tiny_features, st.integers(0, 9), st.integers(1, 2)),
        scale=st.sampled_from([0.0, 0.4, 1.0]),
    ),
    max_size=2,
    unique_by=lambda one: one.character,
)
jobs = st.builds(
    lambda identities, **fields: cast_job(*identities, **fields),
    identities,
    frames=st.integers(2, 3),
    adapter=st.sampled_from(["faces", "shared", "changed"]),
    seed=st.integers(0, 99),
    steps=st.integers(1, 3),
    guidance_scale=st.sampled_from([1.0, 3.0]),
    cross_frame=st.booleans(),
)


@settings(max_examples=8, deadline=None)
@given(batch=st.lists(st.tuples(jobs, st.integers(0, 3)), min_size=2, max_size=3))
def test_stories_with_references_join_and_leave(identity_denoiser: Denoiser, batch: list[tuple[StoryJob, int]]) -> None:
    """Stories that change weights take their steps apart, as the scheduler keeps them."""
    kinds = {identity_denoiser.encode(job).key for job, _ in batch}
    for kind in kinds:
        own = [(job, join) for job, join in batch if identity_denoiser.encode(job).key == kind]
        states = run_batch(identity_denoiser, [job for job, _ in own], [join for _, join in own])
        for state, (job, _) in zip(states, own, strict=True):
            assert torch.equal(state.latents, finish(identity_denoiser, job).latents)


def test_only_adapters_that_change_weights_need_calls_of_their_own(identity_denoiser: Denoiser) -> None:
    plain = identity_denoiser.encode(tiny_job(2)).key
    keys = {
        name: identity_denoiser.encode(cast_job(identity("mia", 1), adapter=name)).key for name in ("faces", "shared")
    }
    changed = identity_denoiser.encode(cast_job(identity("mia", 1), adapter="changed")).key
    assert set(keys.values()) == {plain}
    assert changed != plain
    assert identity_denoiser.encode(cast_job(adapter="changed")).key == plain


def test_a_scale_of_nothing_is_no_identity(identity_denoiser: Denoiser) -> None:
    nothing = finish(identity_denoiser, cast_job(identity("mia", 1, scale=0.0), identity("bo", 2, scale=0.0)))
    assert torch.equal(nothing.latents, finish(identity_denoiser, cast_job()).latents)


@pytest.mark.parametrize("change", [{"seed": 2}, {"scale": 0.5}])
def test_whom_and_how_much_matters(identity_denoiser: Denoiser, change: dict[str, Any]) -> None:
    before = finish(identity_denoiser, cast_job(identity("mia", 1)))
    after = finish(identity_denoiser, cast_job(identity("mia", **({"seed": 1} | change))))
    assert difference(before, after) > 1e-3


def test_references_act_in_the_frames_of_their_character_alone(identity_denoiser: Denoiser) -> None:
    made = [
        finish(identity_denoiser, cast_job(identity("mia", 1), identity("bo", seed), cross_frame=False))
        for seed in (2, 3)
    ]
    assert torch.equal(made[0].latents[0], made[1].latents[0])
    assert float((made[0].latents[1] - made[1].latents[1]).abs().max()) > 1e-3


def test_rows_have_the_streams_of_their_characters(identity_denoiser: Denoiser) -> None:
    """Negative prompts first; frames, then anchors. Bo is in the second row of each; tokens: two of each reference."""
    job = cast_job(identity("mia", 1), Identity("bo", tiny_features(2, references=2)))
    state = identity_denoiser.encode(job)
    streams = state.identity
    assert streams is not None
    assert streams.ends.tolist() == [[2, 2], [2, 6]] * 2
    assert streams.owner.tolist() == [[0, -1], [0, 1]] * 2
    keys = streams.keys_values[0][0]
    assert torch.equal(keys[2, :2], keys[3, :2])
    assert not torch.equal(keys[0, :2], keys[2, :2])  # Of no face at all.
    assert state.nbytes == identity_denoiser.encode(cast_job()).nbytes + streams.nbytes


def test_regions_follow_the_step_before_without_attention_across_frames_too(identity_denoiser: Denoiser) -> None:
    """Those of the first layer, which has no maps before it."""
    job = cast_job(identity("mia", 1), identity("bo", 2), cross_frame=False)
    states = [identity_denoiser.encode(job) for _ in range(2)]
    for state in states:
        identity_denoiser.step([state])
    maps = states[0].previous_maps
    assert maps is not None
    states[1].previous_maps = maps.flip(1)
    identity_denoiser.step([states[0]])
    identity_denoiser.step([states[1]])
    assert torch.equal(states[0].latents[0], states[1].latents[0])  # Mia is alone there.
    assert not torch.equal(states[0].latents[1], states[1].latents[1])
    assert finish(identity_denoiser, cast_job(cross_frame=False)).previous_maps is None


def test_anchors_have_identities_too(identity_denoiser: Denoiser) -> None:
    anchors = tiny_anchors(identity_denoiser, 3)
    job = cast_job(identity("mia", 1), frames=1, anchors=anchors)
    streams = identity_denoiser.encode(job).identity
    assert streams is not None
    # Mia's frame; the anchors show Mia, both, and Bo, who has no references.
    assert streams.ends.tolist() == [[2], [2], [2], [0]] * 2
    with_references, without = (finish(identity_denoiser, one) for one in (job, cast_job(frames=1, anchors=anchors)))
    assert difference(with_references, without) > 1e-3


@settings(max_examples=4, deadline=None)
@given(guidance=st.sampled_from([1.0, 3.0]), cross_frame=st.booleans(), anchors=st.integers(0, 2))
def test_a_story_with_references_goes_on_from_a_checkpoint(
    identity_denoiser: Denoiser, guidance: float, cross_frame: bool, anchors: int
) -> None:
    job = cast_job(
        identity("mia", 1), identity("bo", 2), guidance_scale=guidance, cross_frame=cross_frame, solver="unipc",
        anchors=tiny_anchors(identity_denoiser, anchors),
    )  # fmt: skip
    going = identity_denoiser.encode(job)
    identity_denoiser.step([going])
    again = identity_denoiser.restore(job, identity_denoiser.save(going))
    while not going.done:
        identity_denoiser.step([going])
        identity_denoiser.step([again])
    assert torch.equal(again.latents, going.latents)


def test_a_checkpoint_is_of_its_references(identity_denoiser: Denoiser) -> None:
    job = cast_job(identity("mia", 1))
    state = identity_denoiser.encode(job)
    identity_denoiser.step([state])
    data = identity_denoiser.save(state)
    others = [
        cast_job(identity("mia", 2)),
        cast_job(identity("mia", 1, scale=0.9)),
        cast_job(identity("mia", 1), adapter="shared"),
        cast_job(identity("mia", 1), loras=(("style", 1.0),)),
        cast_job(),
    ]
    for other in others:
        with pytest.raises(CheckpointError, match="of another job"):
            identity_denoiser.restore(other, data)
    plain = identity_denoiser.encode(tiny_job(2))
    left_aside = dataclasses.replace(plain.job, identity_adapter="shared")
    assert identity_denoiser.restore(left_aside, identity_denoiser.save(plain)).step_index == 0


@settings(max_examples=8, deadline=None)
@given(batch=st.lists(jobs.filter(lambda job: job.identity_adapter != "changed"), min_size=1, max_size=3))
@torch.inference_mode()
def test_whatever_is_in_the_padding_rows_are_the_same(identity_denoiser: Denoiser, batch: list[StoryJob]) -> None:
    states = [identity_denoiser.encode(job) for job in batch]
    rows = sum(state.rows for state in states)
    unet, rule = identity_denoiser._unets["amsa-mask"], identity_denoiser._rule
    plain = unet_pass(unet, rule, collate(states))
    padded = pad(collate(states), Capacity(rows + 2, 3, identity_tokens=11, streams=4))
    clean = unet_pass(unet, rule, padded)
    torch.testing.assert_close(clean["values"][:rows], plain["values"], atol=2e-3, rtol=0)
    dirty = {name: value.clone() for name, value in padded.items()}
    for name, value in dirty.items():
        if name.startswith(("identity.key", "identity.value")):
            value[rows:] = float("nan")
    assert torch.equal(unet_pass(unet, rule, dirty)["values"][:rows], clean["values"][:rows])


def test_one_graph_serves_all_casts(identity_package: Path) -> None:
    """Shapes depend on the capacity and on whether anybody has references, not on how many, nor how many tokens."""
    denoiser = Denoiser.load(identity_package, options=ExecutionOptions(buckets=(12,)), one_call=True)
    graphs = denoiser._runner.graphs = GraphCache(4, PretendedCapture())
    finish(denoiser, cast_job(identity("mia", 1)))
    states = [
        denoiser.encode(job)
        for job in (
            cast_job(identity("bo", 1), Identity("mia", tiny_features(2, references=3))),
            cast_job(identity("bo", 1), adapter="shared"),
            tiny_job(1),
        )
    ]
    denoiser.step(states)
    assert len(graphs) == 1
    denoiser.step([denoiser.encode(tiny_job(1))])
    assert len(graphs) == 2


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (cast_job(identity("mia", 1), adapter="gone"), "no identity adapter called gone; use one of faces, shared"),
        (cast_job(identity("mia", 1), adapter="none"), "mia have references, but no identity adapter is named"),
        (cast_job(identity("bo", 1), frames=1), "bo has references but is in no frame"),
        (cast_job(identity("mia", 1), identity("mia", 2)), "mia has identities twice"),
        (cast_job(identity("mia", 1, keep=("nose",))), "to keep nose; what can be kept is face, hair, clothes, body"),
        (
            cast_job(identity("mia", 1, keep=("clothes",))),
            "to keep clothes, and identity adapter faces takes only face",
        ),
        (cast_job(identity("mia", 1, scale=2.5)), r"identity scale 2.5; use one from 0 to 2"),
        (cast_job(identity("mia", 1, scale=float("nan"))), r"identity scale nan; use one from 0 to 2"),
        (cast_job(identity("mia", 1, blend_weight=1.5)), r"blend weight 1.5; use one from 0 to 1"),
        (cast_job(identity("mia", 1, blend_weight=0.5)), "blend weight 0.5 but nobody to blend with"),
        (cast_job(Identity("mia", b"junk")), "the features are damaged"),
        (cast_job(Identity("mia", tiny_features(1, encoders="x"))), "features of mia are of other encoders than"),
        (cast_job(Identity("mia", tiny_features(1), blend=tiny_features(2, encoders="x"))), "of other encoders"),
        (cast_job(Identity("mia", tiny_features(1, references=0))), "no reference of mia shows a face"),
        (cast_job(Identity("mia", tiny_features(1, references=5))), "have 10 identity tokens; tiny takes 9"),
        (cast_job(loras=(("gone", 1.0),)), "no LoRA called gone; use one of style, line"),
        (cast_job(loras=(("style", 3.0),)), "LoRA style has weight 3.0; use one from -2.0 to 2.0"),
        (cast_job(loras=(("style", 0.5), ("style", 0.2))), "named 2 times"),
    ],
)
def test_what_cannot_be_made_says_what_to_change(identity_denoiser: Denoiser, job: StoryJob, words: str) -> None:
    with pytest.raises(JobError, match=words):
        identity_denoiser.encode(job)


def test_a_package_without_identity_adapters_says_so(denoiser: Denoiser) -> None:
    with pytest.raises(JobError, match="tiny has no identity adapter called faces; it has none: leave it out"):
        denoiser.encode(cast_job(identity("mia", 1)))
