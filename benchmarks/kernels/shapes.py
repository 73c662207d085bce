"""What is measured: the layers of SD 1.5 and SDXL with a story of F frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from storyloom_kernels import GroupLayout

FOREGROUND = 0.25
"""Share of a layer's positions in the bank."""


@dataclass(frozen=True)
class Layer:
    """An attention layer: N positions, H heads of d."""

    model: str
    positions: int
    heads: int
    width: int

    @property
    def label(self) -> str:
        return f"{self.model} N={self.positions} d={self.width}"


LAYERS = (
    Layer("SDXL 1024", 4096, 10, 64),
    Layer("SDXL 1024", 1024, 20, 64),
    Layer("SD 1.5 512", 4096, 8, 40),
    Layer("SD 1.5 768", 9216, 8, 40),
    Layer("SD 1.5 768", 2304, 8, 80),
    Layer("SD 1.5 768", 576, 8, 160),
)
"""Those that carry K1's aims, SDXL's, come first."""
FRAMES = (4, 8, 16)
SMOKE_LAYERS = (Layer("smoke", 32, 2, 16),)


def self_attention(layer: Layer, frames: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v [F, H, N, d] as views of [F, N, H, d], and maps [F, 1, N] whose fixed threshold gives FOREGROUND."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (frames, layer.positions, layer.heads, layer.width)
    qkv = [torch.randn(shape, generator=generator, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)]
    return [*qkv, torch.rand(frames, 1, layer.positions, generator=generator, device=device)]


def useful_flops(layer: Layer, mask: Tensor, layout: GroupLayout) -> int:
    """Operations of one forward: 4 d for each pair of a query and a key that it sees; the rest is none's use."""
    own = mask.sum(1)
    keys = 0
    for rows in layout.slices():
        keys += sum(layer.positions + int(own[rows].sum() - own[row]) for row in range(rows.start, rows.stop))
    return 4 * layer.width * layer.heads * layer.positions * keys
