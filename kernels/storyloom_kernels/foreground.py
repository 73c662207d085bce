"""From maps to masks: normalise, threshold, unite. R rows, K characters, N positions."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

_BINS = 256

ForegroundMethod: TypeAlias = Literal["otsu", "quantile", "fixed"]


def normalise_maps(maps: Tensor) -> Tensor:
    """Stretches each map to [0, 1] by its own minimum and maximum.

    Args:
        maps: [..., N], floating point. Non-finite values count as 0.

    Returns:
        The same shape and dtype; a constant map becomes 0.
    """
    maps = maps.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    extent = high - low
    return torch.where(extent > 0, (maps - low) / torch.where(extent > 0, extent, 1), 0)


def foreground(maps: Tensor, method: ForegroundMethod = "otsu", value: float | None = None) -> Tensor:
    """Tells a character's positions from the rest of a map (equation 6).

    Every map is normalised first. Otsu's rule (1979) puts it into 256 equal bins and takes the lowest threshold with
    the largest variance between the two classes, in whole numbers, so that it is the same on every device.

    Args:
        maps: [R, K, N], floating point.
        method: "otsu"; "quantile", which keeps what lies above that quantile of the map; or "fixed", which keeps what
            lies above that value.
        value: in [0, 1], for "quantile" and "fixed" only.

    Returns:
        bool [R, K, N], True strictly above the threshold. A constant map, such as that of an absent character, has
        none.

    Raises:
        ValueError: the method is unknown, or does not go with the value.
    """
    if method not in get_args(ForegroundMethod):
        raise ValueError(f"unknown method {method}; use {', '.join(get_args(ForegroundMethod))}")
    if (method == "otsu") != (value is None) or (value is not None and not 0 <= value <= 1):
        raise ValueError(f"otsu takes no value, quantile and fixed take one in [0, 1]; got {method} with {value}")
    levels = normalise_maps(maps.float())
    if levels.numel() == 0:
        return torch.zeros_like(levels, dtype=torch.bool)
    if value is None:
        bins = (levels * _BINS).long().clamp(max=_BINS - 1)
        return bins > _otsu_threshold(bins)
    return levels > (levels.quantile(value, dim=-1, keepdim=True) if method == "quantile" else value)


def union(masks: Tensor) -> Tensor:
    """Unites the masks of all characters: bool [R, K, N] -> bool [R, N]."""
    return masks.any(dim=1)


def _otsu_threshold(bins: Tensor) -> Tensor:
    """Bin numbers [..., N] -> the last bin of the background [..., 1]."""
    positions = bins.shape[-1]
    histogram = torch.zeros(*bins.shape[:-1], _BINS, dtype=torch.int64, device=bins.device)
    histogram.scatter_add_(-1, bins, torch.ones_like(bins))
    below = histogram.cumsum(-1)
    mass = (histogram * torch.arange(_BINS, device=bins.device)).cumsum(-1)
    # N^2 times the variance between classes. All sums are of integers, so their order does not matter.
    difference = (mass[..., -1:] * below - mass * positions).double()
    variance = difference.square() / (below * (positions - below)).clamp(min=1)
    return variance.argmax(dim=-1, keepdim=True)
