"""K4's gradients: of the input, of the weight and of the bias.

As in the forward, each program reduces its chunk for each of its channels, and one small program per (row, group)
merges these sums in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyloom_kernels.fused.group_norm import (
    Tiling,
    as_rows,
    layer_variants,
    of_channels,
    returned,
    scratch,
    tiling_of,
)
from storyloom_kernels.fused.variants import Variant


@triton.jit
def _before_silu(dy, x, there, centre, scale, w, b, SILU: tl.constexpr):
    """A tile of the normalised input, and of the gradient in front of the activation; both float32."""
    normal = (tl.load(x, mask=there, other=0.0).to(tl.float32) - centre) * scale
    gradient = tl.load(dy, mask=there, other=0.0).to(tl.float32)
    if SILU:
        y = normal * w + b
        gate = tl.sigmoid(y)
        gradient = gradient * gate * (1 + y * (1 - gate))
    return normal, gradient


@triton.jit
def gradient_sums_kernel(
    dy,  # [B, C, N] by strides
    x,
    mean,  # float32 [B, groups]
    rstd,
    weight,  # [C], where AFFINE
    bias,
    sums,  # float32 [2, B, C, chunks]: of the gradient before SiLU, and of that times the normalised input
    d_row, d_channel, d_pos,  # strides, in elements
    x_row, x_channel, x_pos,
    channels,
    positions,
    groups,
    chunks,
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
    d_base = dy + row * d_row + c.to(tl.int64)[:, None] * d_channel
    x_base = x + row * x_row + c.to(tl.int64)[:, None] * x_channel
    plain = tl.zeros([BC, BN], tl.float32)
    weighted = tl.zeros([BC, BN], tl.float32)
    for start in range(first, tl.minimum(first + CHUNK, positions), BN):
        n = (start + tl.arange(0, BN)).to(tl.int64)[None, :]
        there = channel[:, None] & (n < positions)
        normal, gradient = _before_silu(d_base + n * d_pos, x_base + n * x_pos, there, centre, scale, w, b, SILU)
        plain += tl.where(there, gradient, 0.0)
        weighted += tl.where(there, gradient * normal, 0.0)
    place = (row * channels + c) * chunks + tl.program_id(0)
    second = tl.num_programs(2).to(tl.int64) * channels * chunks
    tl.store(sums + place, tl.sum(plain, 1), mask=channel)
    tl.store(sums + second + place, tl.sum(weighted, 1), mask=channel)


@triton.jit
def merge_gradient_sums_kernel(
    sums,  # float32 [2, B, C, chunks], see `gradient_sums_kernel`
    weight,  # [C], where AFFINE
    by_channel,  # float32 [2, B, C]: the sums over all positions
    by_group,  # float32 [2, B, groups]: these times the weight, summed over the channels of a group
    channels,
    groups,
    chunks,
    AFFINE: tl.constexpr,
    BC: tl.constexpr,  # channels of a step
    BLOCK: tl.constexpr,  # chunks of a step
):
    row, group = tl.program_id(1).to(tl.int64), tl.program_id(0)
    width = channels // groups
    rows = tl.num_programs(1).to(tl.int64)
    for which in tl.static_range(2):
        total = tl.zeros([BC], tl.float32)
        for offset in range(0, width, BC):
            inside = offset + tl.arange(0, BC)
            channel = inside < width
            place = (which * rows + row) * channels + group * width + inside
            parts = tl.zeros([BC, BLOCK], tl.float32)
            for start in range(0, chunks, BLOCK):
                chunk = start + tl.arange(0, BLOCK)
                there = channel[:, None] & (chunk < chunks)[None, :]
                parts += tl.load(sums + place[:, None] * chunks + chunk[None, :], mask=there, other=0.0)
            part = tl.sum(parts, 1)
            tl.store(by_channel + place, part, mask=channel)
            if AFFINE:
                part *= tl.load(weight + group * width + inside, mask=channel, other=0.0).to(tl.float32)
            total += part
        tl.store(by_group + (which * rows + row) * groups + group, tl.sum(total, 0))


@triton.jit
def input_gradient_kernel(
    dy,  # [B, C, N] by strides
    x,
    dx,
    mean,  # float32 [B, groups]
    rstd,
    weight,  # [C], where AFFINE
    bias,
    by_group,  # float32 [2, B, groups], see `merge_gradient_sums_kernel`
    d_row, d_channel, d_pos,  # strides, in elements
    x_row, x_channel, x_pos,
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
    width = channels // groups
    group = row * groups + c // width
    second = tl.num_programs(2).to(tl.int64) * groups
    members = (width * positions).to(tl.float32)
    plain = tl.load(by_group + group, mask=channel, other=0.0) / members
    weighted = tl.load(by_group + second + group, mask=channel, other=0.0) / members
    d_base = dy + row * d_row + c.to(tl.int64)[:, None] * d_channel
    x_base = x + row * x_row + c.to(tl.int64)[:, None] * x_channel
    o_base = dx + row * o_row + c.to(tl.int64)[:, None] * o_channel
    for start in range(first, tl.minimum(first + CHUNK, positions), BN):
        n = (start + tl.arange(0, BN)).to(tl.int64)[None, :]
        there = channel[:, None] & (n < positions)
        normal, gradient = _before_silu(d_base + n * d_pos, x_base + n * x_pos, there, centre, scale, w, b, SILU)
        gradient = (gradient * w - plain[:, None] - normal * weighted[:, None]) * scale
        tl.store(o_base + n * o_pos, gradient.to(dx.dtype.element_ty), mask=there)


def group_norm_silu_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    silu: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of ``group_norm_silu``.

    Args:
        dy: gradient of the result, in its shape.
        x, groups, weight, bias, silu: as in the forward pass.
        mean, rstd: what the forward pass returned.

    Returns:
        The gradients of ``x``, in its dtype and order in memory, and of ``weight`` and ``bias``, in theirs.
    """
    if x.numel() == 0:
        d_weight, d_bias = (None if p is None else torch.zeros_like(p) for p in (weight, bias))
        return torch.empty_like(x), d_weight, d_bias
    source, upstream = as_rows(x), as_rows(dy)
    tiling, grid, rows, channels, positions = tiling_of(source)
    chunks = grid[0]
    affine = weight is not None
    blocks = tiling.blocks | {"num_warps": tiling.warps}
    sums = scratch(x, 2, rows, channels, chunks)
    gradient_sums_kernel[grid](
        upstream.tensor, source.tensor, mean, rstd, weight, bias, sums, *upstream.strides, *source.strides,
        channels, positions, groups, chunks, AFFINE=affine, SILU=silu, **blocks,
    )  # fmt: skip
    by_channel, by_group = scratch(x, 2, rows, channels), scratch(x, 2, rows, groups)
    merge_gradient_sums_kernel[(groups, rows)](
        sums, weight, by_channel, by_group, channels, groups, chunks, AFFINE=affine,
        **_sums_blocks(channels // groups, chunks), num_warps=4,
    )  # fmt: skip
    result = torch.empty_like(x)
    dx = as_rows(result)
    input_gradient_kernel[grid](
        upstream.tensor, source.tensor, dx.tensor, mean, rstd, weight, bias, by_group,
        *upstream.strides, *source.strides, *dx.strides, channels, positions, groups,
        AFFINE=affine, SILU=silu, **blocks,
    )  # fmt: skip
    if weight is None or bias is None:
        return returned(result, dx), None, None
    d_bias, d_weight = (part.sum(dim=0) for part in by_channel)
    return returned(result, dx), d_weight.to(weight.dtype), d_bias.to(bias.dtype)


def _sums_blocks(width: int, chunks: int) -> dict[str, int]:
    return {"BC": min(16, triton.next_power_of_2(width)), "BLOCK": min(128, triton.next_power_of_2(chunks))}


def _backward_kernels(tiling: Tiling, width: int, chunks: int) -> list[tuple[Any, dict[str, Any]]]:
    rule = {"AFFINE": True, "SILU": True}
    return [
        (gradient_sums_kernel, tiling.blocks | rule),
        (merge_gradient_sums_kernel, {"AFFINE": True} | _sums_blocks(width, chunks)),
        (input_gradient_kernel, tiling.blocks | rule),
    ]


def variants(architecture: int) -> Iterator[Variant]:
    """What is compiled ahead of time."""
    return layer_variants(_backward_kernels)
