"""What a UNet takes over from one that was built otherwise."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from storyloom_training.base import carry_over, same_build


def build(**changes: object) -> UNet2DConditionModel:
    config: dict[str, object] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": 16, "attention_head_dim": (2, 4), "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**config | changes)


WITH_CAPTION = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}


def test_builds_are_compared_by_what_they_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("unet")
    build().save_pretrained(folder)
    assert same_build(build(), UNet2DConditionModel.from_pretrained(folder))
    assert not same_build(build(), build(**WITH_CAPTION))


@torch.no_grad()
def test_it_makes_what_the_earlier_one_makes_of_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    earlier, later = build(), build(**WITH_CAPTION)
    carry_over(later, earlier)
    for name, module in earlier.named_modules():
        if name.endswith(".attn2"):
            torch.nn.init.zeros_(module.to_out[0].weight)
            torch.nn.init.zeros_(module.to_out[0].bias)
    latents, times, text = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 5, 16)
    torch.testing.assert_close(later(latents, times, text).sample, earlier(latents, times, text).sample)
