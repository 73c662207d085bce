"""K4, group normalisation with SiLU: forward. `group_norm_backward` has its gradient.

A row is seen as [C, N] by strides, N its spatial positions, so that NCHW and channels-last are one kernel. It is cut
into tiles of channels by chunks of positions. Every reduction has two stages: each program reduces its chunk for each
of its channels into a scratch tensor, then one small program per (row, group) merges these partial results in order.
Tiles and chunks follow from the shape of one row, so a row's result has the same bits whatever else is in the batch.
This needs rows to start at multiples of 16 bytes, as they do where C is a multiple of 8: Triton vectorises by
alignment, and the order of the sums inside a program follows. There are no atomics.

Means and sums of squared deviations are built by Welford's update and merged by the formula of Chan, Golub and LeVeque
(1979), which keeps its accuracy where the mean is much larger than the deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyloom_kernels.fused.variants import Variant

MERGE_BLOCK = 1024  # partial moments of a step of `merge_moments_kernel`, at most


@triton.jit
def of_channels(mean, rstd, weight, bias, row, c, channels, groups, AFFINE: tl.constexpr, BC: tl.constexpr):
    """Mean and 1 / deviation of the groups of the channels `c` [BC], their scale and shift: [BC, 1], float32."""
    channel = c < channels
    group = row * groups + c // (channels // groups)
    centre = tl.load(mean + group, mask=channel, other=0.0)
    scale = tl.load(rstd + group, mask=channel, other=0.0)
    if AFFINE:
        w = tl.load(weight + c, mask=channel, other=0.0).to(tl.float32)
        b = tl.load(bias + c, mask=channel, other=0.0).to(tl.float32)
    else:
        w = tl.full([BC], 1.0, tl.float32)
        b = tl.zeros([BC], tl.float32)
    return centre[:, None], scale[:, None], w[:, None], b[:, None]


@triton.jit
def moments_kernel(
    x,  # [B, C, N] by strides
    means,  # float32 [B, C, chunks]: mean of each chunk
    squares,  # float32 [B, C, chunks]: sum of squared deviations from that mean
    x_row, x_channel, x_pos,  # strides, in elements
    channels,
    positions,
    chunks,
    BC: tl.constexpr,  # channels of a tile
    BN: tl.constexpr,  # positions of a tile
    CHUNK: tl.constexpr,  # positions of a program, a multiple of BN
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channel = c < channels
    first = tl.program_id(0) * CHUNK
    last = tl.minimum(first + CHUNK, positions)
    base = x + row * x_row + c.to(tl.int64)[:, None] * x_channel
    mean = tl.zeros([BC, BN], tl.float32)
    square = tl.zeros([BC, BN], tl.float32)
    # Each place of the tile follows its own values, so that the loop needs no exchange between threads. A place that
    # has a value in one step had one in all the steps before.
    steps = 0.0
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        there = channel[:, None] & (n < last)[None, :]
        value = tl.load(base + n.to(tl.int64)[None, :] * x_pos, mask=there, other=0.0).to(tl.float32)
        steps += 1.0
        change = value - mean
        mean += tl.where(there, change * (1.0 / steps), 0.0)
        square += tl.where(there, change * (value - mean), 0.0)
    lane = tl.arange(0, BN)
    count = ((last - first - lane + BN - 1) // BN).to(tl.float32)
    # Relative to one of the means: their sum would be large where they are.
    pivot = tl.sum(tl.where(lane[None, :] == 0, mean, 0.0), 1)
    total = (last - first).to(tl.float32)
    mean -= pivot[:, None]
    middle = tl.sum(count[None, :] * mean, 1) / total
    mean -= middle[:, None]
    square = tl.sum(square + count[None, :] * mean * mean, 1)
    place = (row * channels + c) * chunks + tl.program_id(0)
    tl.store(means + place, pivot + middle, mask=channel)
    tl.store(squares + place, square, mask=channel)


@triton.jit
def merge_moments_kernel(
    means,  # float32 [B, C, chunks], see `moments_kernel`
    squares,
    mean,  # float32 [B, groups]
    rstd,  # float32 [B, groups]: 1 / sqrt(variance + eps)
    width,  # channels of a group
    positions,
    chunks,
    eps,
    CHUNK: tl.constexpr,  # positions of a chunk; the last has what is left
    BLOCK: tl.constexpr,  # partial results of a step
):
    # The partial results of a group lie side by side, channel by channel.
    group = tl.program_id(0).to(tl.int64)
    parts = width * chunks
    base = group * parts
    pivot = tl.load(means + base)
    lane = tl.arange(0, BLOCK)
    total = (width * positions).to(tl.float32)
    shift = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + lane
        there = part < parts
        count = tl.minimum(positions - (part % chunks) * CHUNK, CHUNK).to(tl.float32)
        shift += tl.where(there, count * (tl.load(means + base + part, mask=there, other=0.0) - pivot), 0.0)
    middle = tl.sum(shift, 0) / total
    square = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + lane
        there = part < parts
        count = tl.minimum(positions - (part % chunks) * CHUNK, CHUNK).to(tl.float32)
        change = tl.load(means + base + part, mask=there, other=0.0) - pivot - middle
        within = tl.load(squares + base + part, mask=there, other=0.0)
        square += tl.where(there, within + count * change * change, 0.0)
    tl.store(mean + group, pivot + middle)
    tl.store(rstd + group, tl.div_rn(1.0, tl.sqrt_rn(tl.sum(square, 0) / total + eps)))


@triton.jit
def normalise_kernel(
    x,  # [B, C, N] by strides
    out,
    mean,  # float32 [B, groups]
    rstd,
    weight,  # [C], where AFFINE
    bias,
    x_row, x_channel, x_pos,  # strides, in elements
    o_row, o_channel, o_pos,
    channels,
    positions,
    groups,
    AFFINE: tl.constexpr,
    SILU: tl.constexpr,
    BC: tl.constexpr,  # see `moments_kernel`
    BN: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channel = c < channels
    first = tl.program_id(0) * CHUNK
    centre, scale, w, b = of_channels(mean, rstd, weight, bias, row, c, channels, groups, AFFINE, BC)
    x_base = x + row * x_row + c.to(tl.int64)[:, None] * x_channel
    o_base = out + row * o_row + c.to(tl.int64)[:, None] * o_channel
    for start in range(first, tl.minimum(first + CHUNK, positions), BN):
        n = (start + tl.arange(0, BN)).to(tl.int64)[None, :]
        there = channel[:, None] & (n < positions)
        value = tl.load(x_base + n * x_pos, mask=there, other=0.0).to(tl.float32)
        y = (value - centre) * scale * w + b
        if SILU:
            y = y * tl.sigmoid(y)
        tl.store(o_base + n * o_pos, y.to(out.dtype.element_ty), mask=there)


class Tiling(NamedTuple):
    """How a row [C, N] is cut."""

    channels: int  # of a tile
    positions: int  # of a tile
    chunk: int  # positions of a program
    warps: int

    @property
    def blocks(self) -> dict[str, Any]:
        """The constants of a kernel that goes through a row."""
        return {"BC": self.channels, "BN": self.positions, "CHUNK": self.chunk}


Kernels: TypeAlias = Callable[[Tiling, int, int], list[tuple[Any, dict[str, Any]]]]


def choose_tiling(channels: int, positions: int, channels_last: bool) -> Tiling:
    """The tiling of a row, from its own shape and order in memory.

    A tile has about 2048 elements, 16 to a thread, and at least 64 of them side by side in memory where there are as
    many. A chunk is long enough for the partial results to be few: 1024 to a channel at most.
    """
    size = 2048
    if channels_last:
        tile_channels = min(64, triton.next_power_of_2(channels))
        tile_positions = min(size // tile_channels, max(16, triton.next_power_of_2(positions)))
    else:
        tile_positions = min(size, max(16, triton.next_power_of_2(positions)))
        tile_channels = min(size // tile_positions, triton.next_power_of_2(channels))
    least = 8 * size // (tile_channels if channels_last else 2 * tile_channels)
    chunk = max(least, tile_positions, triton.next_power_of_2(triton.cdiv(positions, 1024)))
    return Tiling(tile_channels, tile_positions, chunk, 4)


class Rows(NamedTuple):
    """A tensor as [B, C, N]: its strides in elements, and the tensor that they belong to."""

    tensor: Tensor
    strides: tuple[int, int, int]


def as_rows(x: Tensor) -> Rows:
    """Flattens the spatial dimensions; copies where no single stride can step through them."""
    rows, channels = x.shape[:2]
    positions = x.shape[2:].numel()
    try:
        flat = x.view(rows, channels, positions)
    except RuntimeError:
        x = x.contiguous()
        flat = x.view(rows, channels, positions)
    # The stride of a single row is arbitrary, and must not decide how Triton specialises the kernel.
    return Rows(x, (flat.stride(0) if rows > 1 else channels * positions, flat.stride(1), flat.stride(2)))


def tiling_of(x: Rows) -> tuple[Tiling, tuple[int, int, int], int, int, int]:
    """The tiling, its grid, and rows, channels and positions."""
    rows, channels = x.tensor.shape[:2]
    positions = x.tensor.shape[2:].numel()
    tiling = choose_tiling(channels, positions, channels_last=x.strides[1] < x.strides[2])
    grid = (triton.cdiv(positions, tiling.chunk), triton.cdiv(channels, tiling.channels), rows)
    return tiling, grid, rows, channels, positions


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, silu: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Group normalisation, then SiLU; statistics in float32.

    Args:
        x: [B, C, ...], float32, float16 or bfloat16; read in place where its spatial dimensions have one stride between
            them, as in NCHW and channels-last.
        groups: of the channels; divides C.
        weight, bias: [C], both or neither.
        eps: added to the variance.
        silu: whether SiLU follows.

    Returns:
        The result, of shape and dtype of ``x`` and in its order in memory, and the groups' mean and 1 / standard
        deviation, float32 [B, groups], which the backward pass needs.

    Raises:
        ValueError: the groups do not divide the channels, or there is one of weight and bias.
    """
    if x.shape[1] % groups or (weight is None) != (bias is None):
        raise ValueError(f"groups must divide C, weight and bias come together; got {groups} for {list(x.shape)}")
    mean, rstd = scratch(x, x.shape[0], groups), scratch(x, x.shape[0], groups)
    if x.numel() == 0:
        return torch.empty_like(x), mean.zero_(), rstd.zero_()
    source = as_rows(x)
    tiling, grid, rows, channels, positions = tiling_of(source)
    chunks = grid[0]
    # Not two parts of one tensor: the alignment of the second, and so the order of its sums, would follow the batch.
    means, squares = scratch(x, rows, channels, chunks), scratch(x, rows, channels, chunks)
    blocks = tiling.blocks | {"num_warps": tiling.warps}
    moments_kernel[grid](source.tensor, means, squares, *source.strides, channels, positions, chunks, **blocks)
    merge_moments_kernel[(rows * groups,)](
        means, squares, mean, rstd, channels // groups, positions, chunks, eps,
        CHUNK=tiling.chunk, BLOCK=_moments_block(channels // groups, chunks), num_warps=4,
    )  # fmt: skip
    result = torch.empty_like(x)
    out = as_rows(result)
    normalise_kernel[grid](
        source.tensor, out.tensor, mean, rstd, weight, bias, *source.strides, *out.strides, channels, positions, groups,
        AFFINE=weight is not None, SILU=silu, **blocks,
    )  # fmt: skip
    return returned(result, out), mean, rstd


def returned(result: Tensor, written: Rows) -> Tensor:
    """``result`` with what was written through its rows, which are a copy where they could not be flattened."""
    return result if written.tensor is result else result.copy_(written.tensor)


def scratch(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _moments_block(width: int, chunks: int) -> int:
    block: int = triton.next_power_of_2(width * chunks)
    return min(MERGE_BLOCK, max(128, block))


def layer_variants(kernels: Kernels) -> Iterator[Variant]:
    """Kernels of K4 at layers of the UNet and of the VAE, in both orders in memory.

    `kernels` gives, for a tiling, the channels of a group and the chunks of a channel, each kernel and its constants.
    """
    types = dict.fromkeys(("x", "out", "dy", "dx", "weight", "bias"), "*bf16")
    types |= dict.fromkeys(("means", "squares", "mean", "rstd", "sums", "by_channel", "by_group"), "*fp32")
    types["eps"] = "fp32"
    groups = 32
    for (channels, positions), channels_last in product(((320, 4096), (128, 1 << 20)), (False, True)):
        tiling = choose_tiling(channels, positions, channels_last)
        chunks = triton.cdiv(positions, tiling.chunk)
        side_by_side = "channel" if channels_last else "pos"
        strides = {f"{tensor}_{axis}" for tensor in "xdo" for axis in ("row", "channel", "pos")}
        ones = {f"{tensor}_{side_by_side}" for tensor in "xdo"} | ({"chunks"} if chunks == 1 else set())
        aligned = strides | {"channels", "positions", "groups"} | ({"chunks"} if chunks % 16 == 0 else set())
        for kernel, constants in kernels(tiling, channels // groups, chunks):
            yield Variant(
                f"group_norm.{kernel.__name__.removesuffix('_kernel')} {channels}x{positions} {side_by_side}", kernel,
                {name: kind for name, kind in types.items() if name in kernel.arg_names},
                constants | {name: 1 for name in ones if name in kernel.arg_names},
                tuple(name for name in kernel.arg_names if name in aligned - ones), tiling.warps, 2,
            )  # fmt: skip


def _forward_kernels(tiling: Tiling, width: int, chunks: int) -> list[tuple[Any, dict[str, Any]]]:
    merge = {"CHUNK": tiling.chunk, "BLOCK": _moments_block(width, chunks)}
    rule = {"AFFINE": True, "SILU": True}
    return [
        (moments_kernel, tiling.blocks),
        (merge_moments_kernel, merge),
        (normalise_kernel, tiling.blocks | rule),
    ]


def variants(architecture: int) -> Iterator[Variant]:
    """What is compiled ahead of time."""
    return layer_variants(_forward_kernels)
