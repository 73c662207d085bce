"""Low-rank changes: fused as the formula says, shared where nothing changes, kept in bounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from storyloom_model.adapters import load_adapter
from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.graphs import GraphCache
from storyloom_model.low_rank import fuse, load_lora
from storyloom_model.package import PackageError
from storyloom_model.variants import Variant, Variants
from tests.model.test_model_denoiser import difference, run_batch
from tests.model.test_model_graphs import PretendedCapture
from tests.model.tiny import finish, tiny_job, tiny_unet
from tests.model.tiny_identity import identity, save_lora, tiny_low_rank


def weights_of(denoiser: Denoiser, variant: Variant) -> dict[str, torch.Tensor]:
    return dict(denoiser._variants.unet(variant).named_parameters())


def test_changes_add_up_to_full_weights(identity_denoiser: Denoiser, identity_package: Path) -> None:
    base = weights_of(identity_denoiser, Variant("amsa"))
    fused = weights_of(identity_denoiser, Variant("amsa", loras=(("line", -0.5), ("style", 2.0))))
    line, style = (load_lora(identity_package / f"{name}.safetensors") for name in ("line", "style"))
    assert line.keys() == {"conv_in.weight"}
    for name, before in base.items():
        if name in line:
            expected = before - 0.5 * (line[name].up @ line[name].down).reshape(before.shape)
        elif name in style:
            expected = before + 2 * style[name].up @ style[name].down
        else:
            assert fused[name] is before
            continue
        torch.testing.assert_close(fused[name], expected)


def test_two_changes_of_one_weight_count_both() -> None:
    torch.manual_seed(0)
    unet = tiny_unet()
    first, second = (tiny_low_rank(unet, "conv_in") for _ in range(2))
    name = "conv_in.weight"
    products = [(one[name].up @ one[name].down).reshape(32, 4, 3, 3) for one in (first, second)]
    fused = fuse(unet, [(first, 1.0), (second, 0.25)])
    torch.testing.assert_close(fused[name], unet.conv_in.weight.detach() + products[0] + 0.25 * products[1])


def test_a_lora_shows_by_its_weight(identity_denoiser: Denoiser) -> None:
    plain = finish(identity_denoiser, tiny_job(1))
    changes = [difference(plain, finish(identity_denoiser, tiny_job(1, loras=(("style", w),)))) for w in (0.0, 0.2, 1)]
    assert changes[0] == 0
    assert 1e-3 < changes[1] < changes[2]


def test_stories_share_a_call_if_they_share_weights(identity_denoiser: Denoiser) -> None:
    jobs = [
        tiny_job(1, loras=(("style", 0.5), ("line", 1.0))),
        tiny_job(2, loras=(("line", 1.0), ("style", 0.5))),
        tiny_job(1, loras=(("style", 0.5),)),
        tiny_job(1, loras=(("style", 0.6),)),
        tiny_job(1, loras=(("style", 0.0),)),
        tiny_job(1),
        tiny_job(1, adapter="none", loras=(("style", 0.5),)),
        tiny_job(1, loras=(("style", 0.5),), identities=(identity("mia", 1),), identity_adapter="changed"),
    ]
    keys = [identity_denoiser.encode(job).key for job in jobs]
    assert keys[0] == keys[1]
    assert keys[4] == keys[5]
    assert len(set(keys)) == 6
    for state, job in zip(run_batch(identity_denoiser, jobs[:2], [0, 1]), jobs[:2], strict=True):
        assert torch.equal(state.latents, finish(identity_denoiser, job).latents)


def test_an_adapter_that_changes_weights_does_so(identity_denoiser: Denoiser) -> None:
    """Without its streams it is another story already."""
    job = tiny_job(1, identities=(identity("mia", 1, scale=0.0),), identity_adapter="changed")
    assert difference(finish(identity_denoiser, job), finish(identity_denoiser, tiny_job(1))) > 1e-3


def test_fused_weights_are_kept_in_bounds_and_made_again(identity_package: Path) -> None:
    denoiser = Denoiser.load(identity_package, options=ExecutionOptions(max_variants=2))
    jobs = [tiny_job(1, seed=place, loras=(("style", 0.1 + place),)) for place in range(2)] + [
        tiny_job(1, seed=2, loras=(("line", 1.0),))
    ]
    expected = [finish(denoiser, job) for job in jobs]
    assert len(denoiser._variants) == 2
    states = [denoiser.encode(job) for job in jobs]
    while not states[0].done:
        for state in states:
            denoiser.step([state])
            assert len(denoiser._variants) == 2
    for state, other in zip(states, expected, strict=True):
        assert torch.equal(state.latents, other.latents)


def test_graphs_of_weights_that_are_gone_go_too(identity_package: Path) -> None:
    """A graph holds the places of its weights in memory."""
    options = ExecutionOptions(buckets=(2,), max_variants=1)
    denoiser = Denoiser.load(identity_package, options=options, one_call=True)
    graphs = denoiser._runner.graphs = GraphCache(8, PretendedCapture())
    first, second = (tiny_job(1, steps=1, loras=(("style", weight),)) for weight in (0.5, 1.0))
    finish(denoiser, tiny_job(1, steps=1))
    finish(denoiser, first)
    assert len(graphs) == 2
    finish(denoiser, second)
    assert len(graphs) == 2
    assert graphs.captured == 3


def test_running_out_of_memory_gives_up_fused_weights(identity_package: Path) -> None:
    denoiser = Denoiser.load(identity_package)
    state = denoiser.encode(tiny_job(1, loras=(("style", 1.0),)))
    assert len(denoiser._variants) == 1

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = denoiser._variants.unet(state.key.variant).register_forward_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        denoiser.step([state])
    hook.remove()
    assert len(denoiser._variants) == 0
    denoiser.step([state])
    assert state.step_index == 1


def test_a_lora_that_does_not_fit_is_named(tmp_path: Path, tiny_package: Path) -> None:
    torch.manual_seed(0)
    unet = tiny_unet()
    changes = tiny_low_rank(unet, "conv_in")
    short = {name: dataclasses.replace(one, down=one.down[:1]) for name, one in changes.items()}
    with pytest.raises(PackageError, match=r"LoRA style is not for this UNet: conv_in.weight is \[32, 4, 3, 3\]"):
        Variants({None: unet}, {}, {"style": short}, 1, lambda _: None)
    save_lora(tmp_path / "lora.safetensors", changes)
    assert load_lora(tmp_path / "lora.safetensors").keys() == changes.keys()
    full_weights = tiny_package / "id_synchronizer" / "amsa.safetensors"
    assert load_adapter(full_weights)
    with pytest.raises(PackageError, match="no LoRA in our form: every change is a pair"):
        load_lora(full_weights)
