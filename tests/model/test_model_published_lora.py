"""LoRA files in every style of keys against diffusers, which loads and fuses the same file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from storyloom_model.identity.published.lora import LoraSettings, read_lora
from storyloom_model.package import PackageError
from tests.model.published_files import full_size_unet, published_unet
from tests.model.tiny import tiny_scheduler, tiny_text_encoder, tiny_tokenizer, tiny_vae

RANK = 3
PREFIXES = ("unet.", "text_encoder.", "lora_")
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "to_q_lora",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": "to_k_lora",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v": "to_v_lora",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": "to_out_lora",
}
"""Modules of attention, and what the oldest files call their changes."""
PLAIN = ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "up_blocks.1.attentions.0.proj_in")
CONVOLUTIONS = ("down_blocks.1.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv")
TEXT = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.self_attn.out_proj")
TEXT_OLD = {"q_proj": "to_q_lora", "out_proj": "to_out_lora"}


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    """The base model."""
    torch.manual_seed(5)
    return {"unet": published_unet(32), "text_encoder": tiny_text_encoder(tiny_tokenizer())}


def in_model(module: nn.Module, name: str) -> str:
    """The name that this version of transformers has for a layer that files call by its old name."""
    return name if hasattr(module, "text_model") else name.removeprefix("text_model.")


def halves(module: nn.Module, name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Down and up for a linear layer or a convolution."""
    weight: Any = module.get_submodule(in_model(module, name)).weight
    kernel = weight.shape[2:]
    down = torch.randn(RANK, weight.shape[1], *kernel, generator=generator)
    up = torch.randn(weight.shape[0], RANK, *(1 for _ in kernel), generator=generator)
    return down, up


def file_in(style: str, modules: dict[str, Any]) -> dict[str, Tensor]:
    """A file in a style, that changes the layers above."""
    generator = torch.Generator().manual_seed(1)
    weights: dict[str, Tensor] = {}

    def add(part: str, name: str, down_name: str, up_name: str, alpha: str | None = None) -> None:
        weights[down_name], weights[up_name] = halves(modules[part], name, generator)
        if alpha is not None:
            weights[alpha] = torch.tensor(2.0)

    if style == "kohya":
        for part, root, names in (
            ("unet", "lora_unet", (*UNET, *PLAIN, *CONVOLUTIONS)),
            ("text_encoder", "lora_te", TEXT),
        ):
            for name in names:
                key = f"{root}_{name.replace('.', '_')}"
                add(part, name, f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha")
    elif style in ("diffusers-old", "diffusers-oldest"):
        root = "unet." if style == "diffusers-old" else ""
        for name, old in UNET.items():
            key = f"{root}{name.removesuffix('.0').rpartition('.')[0]}.processor.{old}"
            add("unet", name, f"{key}.down.weight", f"{key}.up.weight")
        for name in TEXT if root else ():
            block, _, last = name.rpartition(".")
            key = f"text_encoder.{block}.{TEXT_OLD[last]}"
            add("text_encoder", name, f"{key}.down.weight", f"{key}.up.weight")
    elif style == "diffusers":
        for name in (*UNET, *PLAIN):
            add("unet", name, f"unet.{name}.lora.down.weight", f"unet.{name}.lora.up.weight")
        for name in TEXT:
            key = f"text_encoder.{name}.lora_linear_layer"
            add("text_encoder", name, f"{key}.down.weight", f"{key}.up.weight")
    else:
        for part, names in (("unet", (*UNET, *PLAIN, *CONVOLUTIONS)), ("text_encoder", TEXT)):
            for name in names if style == "peft-in-diffusers" or part == "unet" else ():
                root = f"{part}." if style == "peft-in-diffusers" else "base_model.model."
                add(part, name, f"{root}{name}.lora_A.weight", f"{root}{name}.lora_B.weight")
    return weights


def fused(weights: dict[str, Tensor], modules: dict[str, Any]) -> dict[str, Any]:
    """The modules' weights after diffusers has loaded and fused the file."""
    tokenizer = tiny_tokenizer()
    pipelines: Any = StableDiffusionPipeline
    pipeline = pipelines(
        unet=published_unet(32),
        text_encoder=tiny_text_encoder(tokenizer),
        vae=tiny_vae(),
        tokenizer=tokenizer,
        scheduler=tiny_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part, module in modules.items():
        getattr(pipeline, part).load_state_dict(module.state_dict())
    # The oldest files do not say that they are the UNet's, and diffusers takes them no longer.
    pipeline.load_lora_weights({key if key.startswith(PREFIXES) else f"unet.{key}": weights[key] for key in weights})
    pipeline.fuse_lora()
    return {
        part: {
            name.replace(".base_layer", ""): value
            for name, value in getattr(pipeline, part).state_dict().items()
            if "lora_" not in name
        }
        for part in modules
    }


STYLES = ["kohya", "diffusers-oldest", "diffusers-old", "diffusers", "peft-in-diffusers"]


@pytest.mark.parametrize("style", STYLES)
@torch.inference_mode()
def test_changes_are_those_that_diffusers_fuses(style: str, modules: dict[str, Any]) -> None:
    weights = file_in(style, modules)
    expected = fused(weights, modules)
    changes = read_lora("test", weights, modules)
    assert sum(map(len, changes.values())) == sum(value.dim() > 1 for value in weights.values()) // 2
    for part, module in modules.items():
        for name, value in module.state_dict().items():
            change = changes.get(part, {}).get(name)
            own = value if change is None else value + change.scale * (change.up @ change.down).view_as(value)
            torch.testing.assert_close(own, expected[part][name], atol=1e-4, rtol=1e-4)
            assert change is None or not torch.allclose(own, value)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (LoraSettings(), 1.0),
        (LoraSettings.of({"lora_alpha": 6, "r": RANK}), 2.0),
        (LoraSettings.of({"lora_alpha": 6, "use_rslora": True}), 6 / RANK**0.5),
        (LoraSettings.of({"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 12}}), 4.0),
    ],
)
def test_a_file_of_peft_is_read_with_its_configuration(
    settings: LoraSettings, scale: float, modules: dict[str, Any]
) -> None:
    weights = file_in("peft", modules)
    changes = read_lora("test", weights, modules, settings)["unet"]
    first = next(iter(UNET))
    assert set(changes) == {f"{name}.weight" for name in (*UNET, *PLAIN, *CONVOLUTIONS)}
    assert torch.equal(changes[f"{first}.weight"].up, weights[f"base_model.model.{first}.lora_B.weight"])
    assert changes[f"{first}.weight"].scale == pytest.approx(scale)


SDXL = {
    "input_blocks_4_1_transformer_blocks_1_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
    "input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "middle_block_1_transformer_blocks_9_attn2_to_k": "mid_block.attentions.0.transformer_blocks.9.attn2.to_k",
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "output_blocks_2_1_transformer_blocks_0_ff_net_2": "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.2",
    "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
    "output_blocks_3_0_skip_connection": "up_blocks.1.resnets.0.conv_shortcut",
}
"""Names of SDXL's own code, which kohya writes, and of diffusers."""


def test_kohya_files_of_sdxl_find_their_places() -> None:
    unet = full_size_unet("SDXL")
    weights: dict[str, Tensor] = {}
    for theirs, ours in SDXL.items():
        down, up = halves(unet, ours, torch.Generator())
        weights |= {f"lora_unet_{theirs}.lora_down.weight": down, f"lora_unet_{theirs}.lora_up.weight": up}
        weights[f"lora_unet_{theirs}.alpha"] = torch.tensor(6.0)
    changes = read_lora("test", weights, {"unet": unet})["unet"]
    for theirs, ours in SDXL.items():
        change = changes[f"{ours}.weight"]
        assert torch.equal(change.down, weights[f"lora_unet_{theirs}.lora_down.weight"].flatten(1))
        assert change.scale == 2.0


def test_what_does_not_fit_is_said(modules: dict[str, Any]) -> None:
    weights = file_in("diffusers", modules)
    sdxl, small = full_size_unet("SDXL"), full_size_unet("SD 1.5")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = halves(sdxl, name, torch.Generator())
    wrong = {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
    for broken, base, message in (
        (wrong, {"unet": small}, r"for SDXL \(2048\), the package"),
        ({**weights, "unet.a.lora.down.weight": torch.zeros(3, 4)}, modules, "one half of the change of unet.a"),
        (weights, {"unet": modules["unet"]}, "changes text_encoder, which the package does not have"),
        ({**weights, "unet.conv_in.hada_w1_a": torch.zeros(1)}, modules, "is a LoHa, which is not read"),
        ({**weights, "unet.conv_in.bias": torch.zeros(1)}, modules, "in no style that is known: unet.conv_in.bias"),
        ({"lora_unet_what.alpha": torch.zeros(1)}, modules, "in no style that is known"),
        (
            {"unet.what.lora_A.weight": torch.zeros(3, 4), "unet.what.lora_B.weight": torch.zeros(4, 3)},
            modules,
            "changes unet.what, which the package does not have",
        ),
        (
            {"unet.conv_in.lora_A.weight": torch.zeros(3, 4), "unet.conv_in.lora_B.weight": torch.zeros(4, 3)},
            modules,
            "changes unet.conv_in as 4x4, which is 32x36",
        ),
    ):
        with pytest.raises(PackageError, match=message):
            read_lora("test", broken, base)
    with pytest.raises(PackageError, match="DoRA"):
        LoraSettings.of({"use_dora": True})
