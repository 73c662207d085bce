"""K3, foreground: maps to masks, and masks to the bank.

A program holds one whole map in registers and finds its threshold from counts of whole numbers alone, which do not
depend on the order in which they are made. The bank is written in one launch: each program counts the foreground of the
rows before its own, so no program waits for another. Nothing is read on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyloom_kernels.bank import check_bank_mask
from storyloom_kernels.foreground import ForegroundMethod
from storyloom_kernels.fused.variants import Variant
from storyloom_kernels.implementations import MAX_MAP_POSITIONS

# Positions that a program of `compact_kernel` takes at a time: of the rows before its own, and of its own.
COUNT_BLOCK = 8192
SCAN_BLOCK = 2048

ONE_BITS: tl.constexpr = tl.constexpr(0x3F800000)  # 1.0, the largest level, as float32 bits
BEYOND_BITS: tl.constexpr = tl.constexpr(0x7FFFFFFF)  # above the bits of every level


@triton.jit
def _otsu(levels, there, positions, BINS: tl.constexpr):
    """The foreground of the levels [BLOCK] of one map by Otsu's rule."""
    bins = tl.minimum((levels * BINS).to(tl.int32), BINS - 1)
    histogram = tl.histogram(bins, BINS, mask=there).to(tl.int32)
    number = tl.arange(0, BINS)
    below = tl.cumsum(histogram, 0).to(tl.int64)
    mass = tl.cumsum(histogram * number, 0).to(tl.int64)
    total = tl.sum(histogram * number, 0).to(tl.int64)
    # N^2 times the variance between classes, as the definition computes it.
    difference = (total * below - mass * positions).to(tl.float64)
    pairs = tl.maximum(below * (positions - below), 1)
    variance = difference * difference / pairs.to(tl.float64)
    threshold = tl.min(tl.where(variance == tl.max(variance, 0), number, BINS), 0)
    return bins > threshold


@triton.jit
def _quantile(levels, there, positions, rank, weight):
    """The level at `rank` + `weight` in the order of the levels [BLOCK] of one map, as torch.quantile has it."""
    # Floats from 0 to 1 are ordered as their bits are. The largest bit pattern with no more than `rank` levels below it
    # is the level at `rank`, found bit by bit from bit 29, the highest that such a float can have set.
    bits = tl.where(there, levels.to(tl.int32, bitcast=True), BEYOND_BITS)
    low = tl.full([], 0, tl.int32)
    for step in range(30):
        candidate = low | (1 << (29 - step))
        low = tl.where(tl.sum((bits < candidate).to(tl.int32), 0) <= rank, candidate, low)
    at_most = tl.sum((bits <= low).to(tl.int32), 0)
    high = tl.min(tl.where(bits > low, bits, BEYOND_BITS), 0)
    high = tl.where(at_most >= tl.minimum(rank + 2, positions), low, high)
    # torch.lerp works from the nearer end with a fused multiply-add. The product of two float32 is exact in float64.
    begin, end = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
    nearer = tl.where(weight < 0.5, begin, end)
    share = tl.where(weight < 0.5, weight, weight - 1)
    return (nearer.to(tl.float64) + share.to(tl.float64) * (end - begin).to(tl.float64)).to(tl.float32)


@triton.jit(do_not_specialize=["rank"])
def threshold_kernel(
    maps,  # [R * K, N], contiguous
    mask,  # uint8 [R * K, N], contiguous: 1 for foreground
    positions,  # N
    rank,  # quantile: positions below the lower of the two levels that the threshold lies between
    value,  # quantile: share of the way to the upper one, in [0, 1); fixed: the threshold
    METHOD: tl.constexpr,
    BLOCK: tl.constexpr,  # power of 2, at least N
):
    n = tl.arange(0, BLOCK)
    there = n < positions
    start = tl.program_id(0).to(tl.int64) * positions
    x = tl.load(maps + start + n, mask=there, other=0.0).to(tl.float32)
    x = tl.where(tl.abs(x) < float("inf"), x, 0.0)
    low = tl.min(tl.where(there, x, float("inf")), 0)
    extent = tl.max(tl.where(there, x, float("-inf")), 0) - low
    # The plain division is an approximation on a GPU; the definition's is rounded to nearest.
    levels = tl.where(extent > 0, tl.div_rn(x - low, tl.where(extent > 0, extent, 1.0)), 0.0)
    if METHOD == "otsu":
        chosen = _otsu(levels, there, positions, 256)
    elif METHOD == "quantile":
        chosen = levels > _quantile(levels, there, positions, rank, value)
    else:
        tl.static_assert(METHOD == "fixed")
        chosen = levels > value
    tl.store(mask + start + n, chosen.to(tl.uint8), mask=there)


@triton.jit
def compact_kernel(
    mask,  # uint8 [R, N], contiguous: 0 for background
    index,  # int32 [R * N]: row * N + position of each slot
    offsets,  # int32 [R + 1]: first slot of each row
    positions,  # N
    COUNT: tl.constexpr,  # positions of a step through the rows before
    SCAN: tl.constexpr,  # positions of a step through the row
):
    row = tl.program_id(0)
    first = row * positions
    counts = tl.zeros([COUNT], tl.int32)
    for start in range(0, first, COUNT):
        before = start + tl.arange(0, COUNT)
        counts += (tl.load(mask + before, mask=before < first, other=0) != 0).to(tl.int32)
    slot = tl.sum(counts, 0)
    if row == 0:
        tl.store(offsets, 0)
    n = tl.arange(0, SCAN)
    for start in range(0, positions, SCAN):
        there = start + n < positions
        chosen = tl.load(mask + first + start + n, mask=there, other=0) != 0
        rank = tl.cumsum(chosen.to(tl.int32), 0)
        tl.store(index + slot + rank - 1, first + start + n, mask=chosen)
        slot += tl.sum(chosen.to(tl.int32), 0)
    tl.store(offsets + row + 1, slot)


def foreground_blocks(positions: int) -> tuple[int, int]:
    """BLOCK and num_warps of ``threshold_kernel``: at most 32 positions to a thread.

    Raises:
        ValueError: a map of so many positions does not fit into one program.
    """
    if positions > MAX_MAP_POSITIONS:
        raise ValueError(f"the Triton kernel takes maps of up to {MAX_MAP_POSITIONS} positions; got {positions}")
    block = max(256, triton.next_power_of_2(positions))
    return block, max(4, block // 1024)


def foreground(maps: Tensor, method: ForegroundMethod = "otsu", value: float | None = None) -> Tensor:
    """``storyloom_kernels.foreground``, which checks ``method`` and ``value``, in one launch.

    Args:
        maps: [R, K, N], float32, float16 or bfloat16; N up to ``MAX_MAP_POSITIONS``.

    Returns:
        bool [R, K, N], equal to that of the definition in every position.
    """
    mask = torch.empty(maps.shape, dtype=torch.bool, device=maps.device)
    if maps.numel() == 0:
        return mask
    positions = maps.shape[-1]
    block, warps = foreground_blocks(positions)
    rank, value = _rank(value or 0.0, positions) if method == "quantile" else (0, value or 0.0)
    threshold_kernel[(maps.numel() // positions,)](
        maps.contiguous(), mask.view(torch.uint8), positions, rank, value, METHOD=method, BLOCK=block, num_warps=warps
    )
    return mask


def _rank(quantile: float, positions: int) -> tuple[int, float]:
    """Where a quantile lies in the order of the levels, rounded to float32 where torch.quantile rounds it."""
    exact = torch.tensor(quantile, dtype=torch.float32, device="cpu") * (positions - 1)
    return int(exact), float(exact - exact.floor())


def union_bank(mask: Tensor) -> tuple[Tensor, Tensor]:
    """``storyloom_kernels.bank.compact`` in one launch.

    Args:
        mask: bool [R, N].

    Returns:
        ``index`` int32 [R * N] and ``offsets`` int32 [R + 1].

    Raises:
        ValueError: the mask is not bool [R, N], or too large to count in int32.
    """
    check_bank_mask(mask)
    rows, positions = mask.shape
    # Zeros past the last slot, so that a kernel may load a whole tile of slots and drop the surplus later.
    index = torch.zeros(rows * positions, dtype=torch.int32, device=mask.device)
    offsets = torch.empty(rows + 1, dtype=torch.int32, device=mask.device)
    if mask.numel() == 0:
        return index, offsets.zero_()
    compact_kernel[(rows,)](
        mask.contiguous().view(torch.uint8), index, offsets, positions, COUNT=COUNT_BLOCK, SCAN=SCAN_BLOCK, num_warps=8
    )
    return index, offsets


def variants(architecture: int) -> Iterator[Variant]:
    """What is compiled ahead of time."""
    for positions in (4096, MAX_MAP_POSITIONS):
        block, warps = foreground_blocks(positions)
        for method in get_args(ForegroundMethod):
            yield Variant(
                f"foreground.{method} N={positions}", threshold_kernel,
                {"maps": "*fp32", "mask": "*u8", "value": "fp32"}, {"METHOD": method, "BLOCK": block},
                ("positions",), warps, 2,
            )  # fmt: skip
    yield Variant(
        "foreground.compact", compact_kernel, {"mask": "*u8", "index": "*i32", "offsets": "*i32"},
        {"COUNT": COUNT_BLOCK, "SCAN": SCAN_BLOCK}, ("positions",), 8, 2,
    )  # fmt: skip
