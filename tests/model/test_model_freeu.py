"""FreeU: diffusers' own of a whole UNet beside ours row by row, and stories that have it beside others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import apply_freeu as published
from torch import Tensor

from storyloom_model.attention import install_story_attention
from storyloom_model.batch import collate, predict, unet_pass
from storyloom_model.components import load_components
from storyloom_model.denoiser import Denoiser, JobError
from storyloom_model.freeu import apply_freeu
from storyloom_model.jobs import FreeU
from storyloom_model.package import ModelPackage
from storyloom_model.unet import UNetInputs, finest_attention, run_unet
from tests.model.test_model_denoiser import difference
from tests.model.test_model_methods import at_step
from tests.model.tiny import finish, tiny_job, tiny_unet
from tests.model.tiny_control import posed

SCALES = FreeU(b1=1.1, b2=1.2, s1=0.6, s2=0.4)


@pytest.mark.parametrize("size", [(8, 8), (7, 4), (1, 5), (16, 12)])
@pytest.mark.parametrize("place", [0, 1])
def test_the_formula_is_that_of_diffusers(size: tuple[int, int], place: int) -> None:
    """Odd channels and sides, too; a row of scales 1 stays as it is, to the bit."""
    torch.manual_seed(1)
    below, skip = torch.randn(3, 7, *size), torch.randn(3, 5, *size)
    b, s = (SCALES.b1, SCALES.s1) if place == 0 else (SCALES.b2, SCALES.s2)
    mine = apply_freeu(below, skip, torch.tensor([[b, s], [1.0, 1.0], [b, s]]))
    theirs = published(place, below.clone(), skip, b1=1.1, b2=1.2, s1=0.6, s2=0.4)
    for own, other, before in zip(mine, theirs, (below, skip), strict=True):
        torch.testing.assert_close(own[[0, 2]], other[[0, 2]], atol=1e-5, rtol=0)
        assert torch.equal(own[1], before[1])


def of_stable_diffusion() -> Any:
    """Three levels, the lowest and the finest without attention: up blocks of both kinds."""
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=16,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=32,
        norm_num_groups=8,
    )


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["tiny", "of_stable_diffusion"])
@pytest.mark.parametrize("size", [(16, 16), (10, 6)])
def test_a_whole_unet_is_that_of_diffusers(kind: str, size: tuple[int, int]) -> None:
    """With `enable_freeu` of diffusers within 1e-5 where it is on, and to the bit where it is off; sides that cannot be
    halved evenly, too.
    """
    torch.manual_seed(2)
    unet = tiny_unet() if kind == "tiny" else of_stable_diffusion()
    theirs = copy.deepcopy(unet)
    theirs.enable_freeu(s1=SCALES.s1, s2=SCALES.s2, b1=SCALES.b1, b2=SCALES.b2)
    install_story_attention(unet)
    latents, text = torch.randn(2, 4, *size), torch.randn(2, 7, 32)
    given = UNetInputs(latents, torch.tensor([801.0, 33.0]), text, {}, None, {})

    def plain(model: Any) -> Tensor:
        value: Tensor = model(latents, given.times, encoder_hidden_states=text, return_dict=False)[0]
        return value

    on = torch.tensor([[1.1, 1.2, 0.6, 0.4]])
    made, features = run_unet(unet, given, on.expand(2, 4), wants_features=False)
    torch.testing.assert_close(made, plain(theirs), atol=1e-5, rtol=0)
    assert features is None
    off, features = run_unet(unet, given, torch.ones(2, 4), wants_features=True)
    assert torch.equal(off, plain(unet))
    assert float((off - made).abs().max()) > 1e-3
    found = list[Tensor]()
    hook = unet.up_blocks[0].register_forward_hook(lambda _, __, out: found.append(out))
    plain(unet)
    hook.remove()
    assert features is not None
    assert torch.equal(features, found[0])
    mixed, _ = run_unet(unet, given, torch.cat([on, torch.ones(1, 4)]), wants_features=False)
    torch.testing.assert_close(mixed[0], made[0], atol=1e-6, rtol=0)
    assert torch.equal(mixed[1], off[1])


def test_the_largest_attention_is_found() -> None:
    assert (finest_attention(tiny_unet()), finest_attention(of_stable_diffusion())) == (0, 1)


@torch.inference_mode()
def test_the_pass_of_its_own_is_the_unets_with_controlnets_too(control_denoiser: Denoiser) -> None:
    """Scales of 1 for all: every input that the engine has, to the bit."""
    state = at_step(control_denoiser, posed(tiny_job(2, steps=3), 1, 2), 1)
    inputs = collate([state])
    unet, rule, nets = control_denoiser._unets["amsa-mask"], control_denoiser._rule, control_denoiser._controlnets
    assert any(name.startswith("control/") for name in inputs)
    plain = unet_pass(unet, rule, inputs, controlnets=nets)
    same = unet_pass(unet, rule, inputs | {"freeu": torch.ones(len(inputs["latents"]), 4)}, controlnets=nets)
    for name in ("values", "maps"):
        assert torch.equal(plain[name], same[name])


@torch.inference_mode()
def test_stories_do_not_notice_each_others_freeu(denoiser: Denoiser) -> None:
    """In one call with another's numbers and none; who is alone without has no such input."""
    jobs = [
        tiny_job(2, seed=1),
        tiny_job(3, seed=2, freeu=SCALES),
        tiny_job(2, seed=3, freeu=FreeU(1.4, 1.5, 0.9, 0.2)),
    ]
    jobs.append(tiny_job(2, seed=4, steps=10, method="consistory", freeu=SCALES))
    states = [at_step(denoiser, job, 1) for job in jobs]
    assert len({state.key for state in states}) == 1
    assert "freeu" not in collate(states[:1])
    unet = denoiser._unets["amsa-mask"]

    def made(own: list[Any]) -> list[Tensor]:
        return [one.values for one in predict(lambda inputs: unet_pass(unet, denoiser._rule, inputs), own)]

    for together, state in zip(made(states), states, strict=True):
        torch.testing.assert_close(together, made([state])[0], atol=2e-5, rtol=0)


def test_a_story_with_freeu_is_another_and_goes_on_from_its_checkpoint(denoiser: Denoiser) -> None:
    job = tiny_job(2, freeu=SCALES)
    whole, state = finish(denoiser, job), at_step(denoiser, job, 2)
    again = denoiser.restore(job, denoiser.save(state))
    while not again.done:
        denoiser.step([again])
    assert torch.equal(again.latents, whole.latents)
    assert difference(whole, finish(denoiser, tiny_job(2))) > 1e-3
    unchanged = finish(denoiser, tiny_job(2, freeu=FreeU(1.0, 1.0, 1.0, 1.0)))
    assert torch.equal(unchanged.latents, finish(denoiser, tiny_job(2)).latents)
    with pytest.raises(ValueError, match="another job"):
        denoiser.restore(tiny_job(2), denoiser.save(state))


@pytest.mark.parametrize("number", [-0.1, 4.1, float("nan")])
def test_bad_numbers_are_refused(denoiser: Denoiser, number: float) -> None:
    with pytest.raises(JobError, match=r"FreeU has s2 .*; use 0 to 4"):
        denoiser.encode(tiny_job(1, freeu=FreeU(s2=number)))


def test_a_backend_without_it_says_so(tiny_package: Any) -> None:
    class Without(Denoiser):
        takes_freeu = False

    package = ModelPackage.load(tiny_package)
    without = Without(package, load_components(package, "cpu", torch.float32))
    with pytest.raises(JobError, match="the backend torch has no FreeU; go without"):
        without.encode(tiny_job(1, freeu=SCALES))
    without.encode(tiny_job(1))
