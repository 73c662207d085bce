"""GroupNorm and SiLU as one op change nothing but how it is computed."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from storyloom_model.fusion import GroupNormSiLU, fuse_group_norms


def small_unet(**options: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config: dict[str, object] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": 16, "attention_head_dim": (2, 4), "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**config | options).eval()


@torch.no_grad()
def test_a_unet_makes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = small_unet()
    given = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 5, 16)
    before, names = unet(*given).sample, set(unet.state_dict())
    norms = sum(isinstance(module, nn.GroupNorm) for module in unet.modules())
    fused = fuse_group_norms(unet)
    in_transformers = sum("attentions" in name and isinstance(m, nn.GroupNorm) for name, m in unet.named_modules())
    assert fused == norms - in_transformers > 0
    assert sum(isinstance(module, GroupNormSiLU) for module in unet.modules()) == fused
    assert set(unet.state_dict()) == names
    torch.testing.assert_close(unet(*given).sample, before)


@torch.no_grad()
def test_an_autoencoder_makes_the_same() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    ).eval()  # fmt: skip
    picture = torch.randn(1, 3, 16, 16)
    before = vae(picture).sample
    norms = sum(isinstance(module, nn.GroupNorm) for module in vae.modules())
    in_attention = sum("attentions" in name and isinstance(m, nn.GroupNorm) for name, m in vae.named_modules())
    assert fuse_group_norms(vae) == norms - in_attention > 0
    torch.testing.assert_close(vae(picture).sample, before)


@torch.no_grad()
def test_blocks_with_a_shift_in_between_are_left_alone() -> None:
    unet = small_unet(resnet_time_scale_shift="scale_shift")
    given = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 5, 16)
    before = unet(*given).sample
    assert fuse_group_norms(unet) == 1  # the last one, before the output
    torch.testing.assert_close(unet(*given).sample, before)
