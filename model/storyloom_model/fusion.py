"""GroupNorm and the SiLU after it as one op (K4), in the modules of diffusers. Parameters keep their names."""

from __future__ import annotations

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from storyloom_kernels import group_norm_silu


class GroupNormSiLU(nn.GroupNorm):
    """A GroupNorm that applies the SiLU after it too."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm_silu(input, self.num_groups, self.weight, self.bias, self.eps)


class _TimeSiLU(nn.Module):
    """A residual block has one activation for its features, which have passed theirs, and its time embedding."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if x.ndim == 2 else x


def fuse_group_norms(model: nn.Module) -> int:
    """Fuses every GroupNorm of a UNet2DConditionModel or AutoencoderKL that a SiLU follows, in place.

    Blocks that put something between the two, such as a scale and a shift, stay what they are.

    Returns:
        The number of GroupNorms that were fused.
    """
    fused = 0
    for module in model.modules():
        block: Any = module
        if isinstance(module, ResnetBlock2D):
            names = ("norm1", "norm2")
            # "group", as an autoencoder's decoder says, means that there is no time embedding.
            plain = block.time_embedding_norm in ("default", "group") and isinstance(block.nonlinearity, nn.SiLU)
            if plain and all(isinstance(getattr(block, name), nn.GroupNorm) for name in names):
                fused += sum(_fuse(block, name) for name in names)
                block.nonlinearity = _TimeSiLU()
        elif isinstance(getattr(block, "conv_norm_out", None), nn.GroupNorm) and isinstance(block.conv_act, nn.SiLU):
            fused += _fuse(block, "conv_norm_out")
            block.conv_act = nn.Identity()
    return fused


def _fuse(block: nn.Module, name: str) -> bool:
    # Taking over the class keeps the parameters, their names and whoever holds the module.
    getattr(block, name).__class__ = GroupNormSiLU
    return True
