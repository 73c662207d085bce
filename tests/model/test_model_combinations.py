"""Story methods, ControlNets, identities and second passes in one story, and beside others."""

from __future__ import annotations

from dataclasses import replace

import torch

from storyloom_model.batch import predict, unet_pass
from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import AnchorFrame, Identity, StoryJob
from storyloom_model.redenoising.plan import part
from tests.model.test_model_denoiser import run_batch
from tests.model.test_model_redenoising import plain, two_pass_job
from tests.model.tiny import finish, tiny_job
from tests.model.tiny_control import posed, with_landmarks
from tests.model.tiny_identity import identity

STEPS = 10
"""So many that ConsiStory mixes the queries of one of them."""


def consistory(*poses: int | None) -> StoryJob:
    return posed(tiny_job(2, method="consistory", steps=STEPS), *poses)


def two_passes() -> StoryJob:
    """Under ConsiStory, with a pose for the first frame; references of both, whose IdentityNet sees faces in them."""
    job = two_pass_job(2, start=1, steps=3, method="consistory")
    who = tuple(replace(one, features=with_landmarks(seed)) for seed, one in enumerate(job.identities))
    return posed(replace(job, identities=who), 7)


def test_a_method_and_a_pose_are_in_a_batch_what_they_are_alone(control_denoiser: Denoiser) -> None:
    jobs = [
        consistory(7, None),
        posed(tiny_job(2, seed=2, steps=3), None, 8),
        tiny_job(1, seed=3, steps=4, identities=(Identity("mia", with_landmarks(1)),), identity_adapter="faces"),
    ]
    alone = [finish(control_denoiser, job) for job in jobs]
    for state, own in zip(run_batch(control_denoiser, jobs, [0, 1, 2]), alone, strict=True):
        assert torch.equal(state.latents, own.latents)
    assert not torch.allclose(alone[0].latents, finish(control_denoiser, consistory()).latents, atol=1e-2)


@torch.inference_mode()
def test_rows_of_a_plain_pass_have_the_pose_too(control_denoiser: Denoiser) -> None:
    """In the step that mixes queries, in one call with others."""
    states = [control_denoiser.encode(job) for job in (posed(tiny_job(1, seed=2), 8), consistory(7, None))]
    for state in states:
        control_denoiser.step([state])
    assert states[1].step_rows == 2 * states[1].rows
    unet, nets = control_denoiser._unets["amsa-mask"], control_denoiser._controlnets

    def found(*own: int) -> list[torch.Tensor]:
        chosen = [states[place] for place in own]
        rule = control_denoiser._rule
        return [one.values for one in predict(lambda inputs: unet_pass(unet, rule, inputs, controlnets=nets), chosen)]

    for together, apart in zip(found(0, 1), found(0) + found(1), strict=True):
        torch.testing.assert_close(together, apart, atol=2e-3, rtol=0)


def test_a_first_pass_knows_no_face(control_denoiser: Denoiser) -> None:
    """Neither identities nor IdentityNet act in it; poses do, in both passes."""
    job = two_passes()
    state, without = control_denoiser.encode(job), control_denoiser.encode(plain(job))
    assert state.second is not None
    nets = [sorted(control.net for control in one.controls) for one in (state, *state.second.regions)]
    assert nets == [["pose"], ["face", "pose"], ["face"]]
    for _ in range(job.steps):
        control_denoiser.step([state])
        control_denoiser.step([without])
    assert torch.equal(state.latents, without.latents)


def test_a_second_pass_under_a_method_that_remembers_goes_on(control_denoiser: Denoiser) -> None:
    """ConsiStory's masks are of the steps before, in the regions too; a checkpoint has them."""
    job = two_passes()
    going = control_denoiser.encode(job)
    kept = []
    while not going.done:
        control_denoiser.step([going])
        kept.append(control_denoiser.save(going))
    assert going.second is not None
    assert [len(region.kept["maps"]) for region in going.second.regions] == [2, 2]
    for data in kept[:-1]:
        state = control_denoiser.restore(job, data)
        while not state.done:
            control_denoiser.step([state])
        assert torch.equal(state.latents, going.latents)


def test_lora_acts_in_both_passes(control_denoiser: Denoiser) -> None:
    """Beside a pose; the first pass is that of the same story without faces, the second has the same weights."""
    job = replace(two_passes(), loras=(("style", 0.8),), method="")
    state, without = control_denoiser.encode(job), control_denoiser.encode(plain(job))
    assert state.second is not None
    assert {one.key for one in (state, without, *state.second.regions)} == {state.key}
    for _ in range(job.steps):
        control_denoiser.step([state])
        control_denoiser.step([without])
    assert torch.equal(state.latents, without.latents)
    while not state.done:
        control_denoiser.step([state])
    weaker = finish(control_denoiser, replace(job, loras=(("style", 0.4),)))
    assert not torch.allclose(state.latents, weaker.latents, atol=1e-2)


def test_a_character_may_join_in_a_later_window(control_denoiser: Denoiser) -> None:
    """Mia's first frame is finished; Bo comes with a face of his own, which acts in his frame alone."""
    job = two_pass_job(2, steps=3, cross_frame=False)
    alone, both = job.frames
    job = replace(job, frames=(alone, replace(alone, seed=77), both))
    (latents,) = control_denoiser.final_latents(finish(control_denoiser, part(job, [0])))
    later = part(job, [1, 2], [AnchorFrame(alone.prompt, alone.seed, latents)])
    assert part(job, [0]).characters == ("mia",)
    assert later.characters == ("mia", "bo")
    other = replace(later, identities=(later.identities[0], identity("bo", 9)))
    one, two = finish(control_denoiser, later), finish(control_denoiser, other)
    assert (one.latents != two.latents).flatten(1).any(dim=1).tolist() == [False, True]
