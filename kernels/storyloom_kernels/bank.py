"""The bank of a batch: the foreground positions of all its rows, gathered.

A *slot* is one foreground position. Slots are ordered by row, then by position, so the foreground of a row, and that of
any rows that follow each other, is one contiguous range. With R rows of N positions:

- ``index``, int32 [R * N]: slot -> row * N + position. Its capacity does not depend on the mask; entries past the last
  slot mean nothing.
- ``offsets``, int32 [R + 1]: row r owns the slots from ``offsets[r]`` to before ``offsets[r + 1]``; ``offsets[0]`` is 0
  and ``offsets[R]`` is the number of slots.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_bank_mask(mask: Tensor) -> None:
    """Raises ValueError where ``mask`` cannot be put into a bank."""
    if mask.ndim != 2 or mask.dtype != torch.bool or mask.numel() > torch.iinfo(torch.int32).max:
        raise ValueError(f"a bank needs a bool mask [R, N] with R * N < 2^31; got {mask.dtype} {list(mask.shape)}")


def compact(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gathers the foreground into a bank, in plain PyTorch and without reading a value on the host.

    Args:
        mask: bool [R, N], True for foreground.

    Returns:
        ``index`` int32 [R * N], 0 past the last slot, and ``offsets`` int32 [R + 1].

    Raises:
        ValueError: the mask is not bool [R, N], or too large to count in int32.
    """
    check_bank_mask(mask)
    capacity = mask.numel()
    offsets = torch.zeros(mask.shape[0] + 1, dtype=torch.int32, device=mask.device)
    offsets[1:] = mask.sum(dim=1).cumsum(dim=0)
    chosen = mask.flatten()
    # The background all lands in one slot beyond the capacity, which is cut off: no shape depends on the mask.
    slot = torch.where(chosen, chosen.cumsum(dim=0) - 1, capacity)
    index = torch.zeros(capacity + 1, dtype=torch.int32, device=mask.device)
    index.scatter_(0, slot, torch.arange(capacity, dtype=torch.int32, device=mask.device))
    return index[:capacity], offsets
