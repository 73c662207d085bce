"""FreeU (Si et al., "FreeU: Free Lunch in Diffusion U-Net", CVPR 2024), row by row.

As published code has it: in the first two up blocks, before each residual block, the first half of the channels that
come from below is multiplied by b, and in what the skip connection brings the lowest frequencies are multiplied by s:
those of the 2 by 2 around the middle of a centred spectrum, which are 0 and -1 in each direction.

They are so few that no Fourier transform is needed: their part of a picture is a projection onto eight waves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCKS = 2
"""Up blocks that it acts in, from the lowest on."""


def apply_freeu(below: Tensor, skip: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """What a residual block of an up block goes on with.

    Args:
        below: [R, C, h, w], what comes from below.
        skip: [R, D, h, w], what the skip connection brings.
        scales: float32 [R, 2], b and s of each row; 1 leaves a row as it is, to the bit.

    Returns:
        Both, of the same shapes and dtypes.
    """
    half = below.shape[1] // 2
    b, s = (one.view(-1, 1, 1, 1) for one in scales.unbind(dim=1))
    scaled = torch.cat([(below[:, :half].float() * b).to(below.dtype), below[:, half:]], dim=1)
    wide = skip.float()
    filtered = (wide + (s - 1) * lowest_frequencies(wide)).to(skip.dtype)
    return scaled, torch.where(s == 1, skip, filtered)


def lowest_frequencies(values: Tensor) -> Tensor:
    """The part of pictures float32 [R, C, h, w] that has frequencies 0 and -1 in each direction: the same shape."""
    height, width = values.shape[-2:]
    down, across = (_angles(size, values.device) for size in (height, width))
    angles = (down[:, None, :, None] + across[None, :, None, :]).reshape(-1, height * width)
    waves = torch.cat([angles.cos(), angles.sin()]) / math.sqrt(height * width)
    flat = values.flatten(2)
    return ((flat @ waves.T) @ waves).view(values.shape)


def _angles(size: int, device: torch.device) -> Tensor:
    """Of both frequencies along one side: [2, size]; of a side of 1, which has only the first, [1, 1]."""
    frequencies = -torch.arange(min(size, 2), device=device)
    return frequencies[:, None] * torch.arange(size, device=device) * (2 * math.pi / size)
