"""Collects the maps of a UNet pass and makes masks of them. S source rows, K characters, (h, w) positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import ForegroundMethod, foreground, normalise_maps, union

Size: TypeAlias = tuple[int, int]
"""Height and width in positions of a layer."""


@dataclass(frozen=True, slots=True)
class ForegroundRule:
    """How maps become masks; see ``storyloom_kernels.foreground``."""

    method: ForegroundMethod = "otsu"
    value: float | None = None


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Maps of one cross-attention layer: ``values`` [S, K, h * w], with gradient where the pass has one."""

    values: Tensor
    size: Size


@dataclass(slots=True)
class MapStack:
    """The maps of the cross-attention layers that have run so far in one pass."""

    layers: list[LayerMap] = field(default_factory=list)
    _sums: dict[Size, tuple[Tensor, int]] = field(default_factory=dict)

    def add(self, values: Tensor, size: Size) -> None:
        """Adds the maps [S, K, h * w] of a layer."""
        self.layers.append(LayerMap(values, size))

    @torch.no_grad()
    def average(self, size: Size) -> Tensor:
        """Mean over all layers so far, each resized bilinearly: [S, K, *size], without gradient.

        Raises:
            LookupError: no layer has run.
        """
        if not self.layers:
            raise LookupError("no cross-attention layer has run in this pass")
        total, count = self._sums.get(size, (torch.zeros(()), 0))
        for layer in self.layers[count:]:
            values = resize(layer.values.detach().reshape(*layer.values.shape[:2], *layer.size), size)
            total = values if count == 0 else total + values
            count += 1
        self._sums[size] = (total, count)
        return total / count


def resize(maps: Tensor, size: Size) -> Tensor:
    """Bilinear resize: [S, K, h, w] -> [S, K, *size]."""
    if maps.numel() == 0:  # No characters: there is nothing to interpolate.
        return maps.new_zeros(*maps.shape[:2], *size)
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def united_mask(maps: Tensor, rule: ForegroundRule) -> Tensor:
    """Foreground of any character: maps [S, K, h, w] -> bool [S, h * w]."""
    return union(foreground(maps.flatten(-2), rule.method, rule.value))


def character_masks(maps: Tensor, size: Size, rule: ForegroundRule) -> NDArray[np.bool_]:
    """Where each character of one frame is: maps [K, h, w] -> bool [K, *size].

    A position that several characters claim goes to the one whose map, on a scale from 0 to 1, is highest there.
    """
    if maps.shape[0] == 0:
        return np.zeros((0, *size), dtype=np.bool_)
    positions = maps.flatten(-2)[None]
    claimed = foreground(positions, rule.method, rule.value)
    strength = torch.where(claimed, normalise_maps(positions), -1.0)
    own = claimed & (strength == strength.amax(dim=1, keepdim=True))
    grown = F.interpolate(own.float().reshape(1, *maps.shape), size=size, mode="nearest")[0]
    return (grown > 0.5).cpu().numpy()


def layer_size(latent_size: Size, positions: int) -> Size:
    """Height and width of the UNet level that has this many positions; each level halves and rounds up.

    Raises:
        ValueError: no level of a UNet on this latent has that many positions.
    """
    height, width = latent_size
    while height * width > positions and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != positions:
        raise ValueError(f"no level of a {latent_size[0]} by {latent_size[1]} latent has {positions} positions")
    return height, width
