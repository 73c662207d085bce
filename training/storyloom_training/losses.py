"""Losses on predictions and on cross-attention maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_mse(made: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error with a weight per place, in units of the plain one (weights are divided by their mean).

    What is learnt in the limit is the same, the mean of what can be at each place; what is learnt first is not.

    Args:
        made, target: [rows, channels, h, w].
        weight: [rows, h, w], positive.
    """
    return ((made - target).square().mean(1) * weight).mean() / weight.mean()


def people_weights(masks: Tensor, heads: Tensor, size: tuple[int, int], people: float, head: float) -> Tensor:
    """Weights [rows, h, w]: 1, and `people` more where people are, and `head` more on their heads.

    Args:
        masks, heads: coverage [rows, characters, H, W] in [0, 1].
        size: (h, w) of the latents.
    """
    shares = [F.adaptive_avg_pool2d(part.amax(1, keepdim=True), size)[:, 0] for part in (masks, heads)]
    return 1 + people * shares[0] + head * shares[1]


def dice_loss(maps: Tensor, masks: Tensor, eps: float = 1.0) -> Tensor:
    """Dice distance of each map from its mask, in its squared form (Milletari et al., 2016).

    Args:
        maps: [..., n] in [0, 1].
        masks: [..., n] in [0, 1].
        eps: keeps the ratio defined where both are empty.

    Returns:
        [...]: 0 for a perfect match, near 1 for none.
    """
    overlap = (maps * masks).sum(-1)
    total = maps.square().sum(-1) + masks.square().sum(-1)
    return 1 - (2 * overlap + eps) / (total + eps)


def mask_perceptual_loss(layer_maps: Sequence[tuple[Tensor, tuple[int, int]]], masks: Tensor) -> Tensor:
    """Storynizor's Mask Perceptual Loss (equation 8 of the paper): Dice between attention maps and true masks.

    Each layer's map is held against the masks at its own resolution, so that the maps of early layers, which later
    layers select their banks by, get gradients of their own.

    Args:
        layer_maps: per cross-attention layer the map [rows, characters, h*w], not normalised, and its (h, w).
        masks: coverage [rows, characters, H, W] in [0, 1]; empty where a character is not in the row.

    Returns:
        The mean over layers and over the characters that are seen; 0 if there are none.
    """
    seen = masks.flatten(2).sum(-1) > 0.5
    if not seen.any():
        return masks.new_zeros(())
    losses = []
    for maps, size in layer_maps:
        truth = F.adaptive_avg_pool2d(masks, size).flatten(2)
        lowest, highest = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
        scaled = (maps - lowest) / (highest - lowest).clamp_min(1e-6)
        losses.append(dice_loss(scaled, truth)[seen].mean())
    return torch.stack(losses).mean()
