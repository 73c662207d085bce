"""K2, text cross-attention with the identity streams of the characters: forward. `identity_backward` has its gradient.

One program takes a tile of queries of one head and row, goes through the text, and then through the tokens of each
stream between bounds read from device memory; an empty stream costs nothing. Each softmax has its own normaliser, so
what the backward keeps is one logarithm per softmax and query. Maps are written per head and averaged afterwards: a
sum over heads inside the kernel would need atomics, whose order is not fixed. A row's result depends on no other row
and not on how many there are, and its output not on whether maps are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyloom_kernels.fused.tiles import (
    LOG2E,
    add_product,
    dot_rows,
    load_rows,
    plane,
    readable,
    split_width,
    store_rows,
    strides,
    zero_rows,
)
from storyloom_kernels.fused.variants import WIDTHS, Variant, each_tiles
from storyloom_kernels.tuning import Tiles

# `tl.dot` sums over 16 columns or more; token groups are padded to it.
GROUPS: tl.constexpr = tl.constexpr(16)
# Identity tokens of a step. Most encoders give 4 or 16 of a character.
STREAM_STEP = 16


@triton.jit
def exponents(q0, q1, k0, k1, keep, scale, D1: tl.constexpr):
    """Exponents of 2 of the softmax [BM, keys]; -inf for keys that do not exist, which else would score 0."""
    return tl.where(keep[None, :], dot_rows(q0, q1, k0, k1, D1) * scale, float("-inf"))


@triton.jit
def _extend(top, total, scores):
    """The largest exponent and the sum of the powers, with one more tile of keys. The first tile has a key."""
    higher = tl.maximum(top, tl.max(scores, 1))
    return higher, total * tl.exp2(top - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)


@triton.jit
def nothing(BM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """An empty softmax and an empty sum of rows."""
    acc0, acc1 = zero_rows(BM, D0, D1)
    return tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32), acc0, acc1


@triton.jit
def _finish(top, total):
    """What to divide by, and the logarithm to keep. Without a key: 1, since there is nothing to divide, and -inf."""
    total = tl.where(total == 0.0, 1.0, total)
    return total, top + tl.log2(total)


@triton.jit
def stream_weight(weights, region, n, there, REGION: tl.constexpr):
    """How much of a stream each query takes; 0 beyond the last query."""
    weight = tl.where(there, tl.load(weights), 0.0)
    if REGION:
        weight *= tl.load(region + n, mask=there, other=0.0)
    return weight


@triton.jit
def _forward(
    q,  # [R, H, N, d] by strides; the last is 1 in every tensor
    k,  # [R, H, T, d]
    v,
    id_k,  # [R, H, S, d]: the tokens of a row's streams, one stream after the other
    id_v,
    ends,  # int32 [R, C]: one past the last token of each stream
    weights,  # float32 [R, C]: scale of each stream
    region,  # float32 [R, C, N]; not read without REGION
    token_mask,  # number [R, G, T]; not read for G = 0
    out,  # [R, H, N, d]
    lse,  # float32 [R, H, N] without gaps: logarithm to base 2 of the sum of the powers, over the text
    id_lse,  # float32 [R, H, C, N] without gaps: likewise over each stream, -inf for an empty one
    maps,  # float32 [R, H, G, N] without gaps: each head's share of the maps
    q_row, q_head, q_pos,  # strides, in elements
    k_row, k_head, k_pos,
    v_row, v_head, v_pos,
    id_k_row, id_k_head, id_k_pos,
    id_v_row, id_v_head, id_v_pos,
    ends_row,
    weights_row,
    region_row, region_stream,
    mask_row, mask_group,
    o_row, o_head, o_pos,
    heads,
    positions,  # N
    tokens,  # T
    packed,  # S
    scale,  # d^-0.5 * log2(e)
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    C: tl.constexpr,  # streams
    G: tl.constexpr,  # token groups that have a map
    REGION: tl.constexpr,  # there is a region
    BM: tl.constexpr,  # queries of a program
    BT: tl.constexpr,  # text tokens of a step
    BS: tl.constexpr,  # identity tokens of a step
):  # fmt: skip
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    there = n < positions
    place = row * heads + head
    q0, q1 = load_rows(plane(q, row, q_row, head, q_head), n * q_pos, there, D, D0, D1, False)

    k_base, v_base = plane(k, row, k_row, head, k_head), plane(v, row, v_row, head, v_head)
    top, total, out0, out1 = nothing(BM, D0, D1)
    for start in range(0, tokens, BT):
        key = start + tl.arange(0, BT)
        keep = key < tokens
        k0, k1 = load_rows(k_base, key * k_pos, keep, D, D0, D1, False)
        scores = exponents(q0, q1, k0, k1, keep, scale, D1)
        before = top
        top, total = _extend(top, total, scores)
        v0, v1 = load_rows(v_base, key * v_pos, keep, D, D0, D1, False)
        shrink = tl.exp2(before - top)[:, None]
        out0 *= shrink
        if D1 > 0:
            out1 *= shrink
        out0, out1 = add_product(out0, out1, tl.exp2(scores - top[:, None]), v0, v1, D1)
    total, log = _finish(top, total)
    out0, out1 = out0 / total[:, None], out1 / total[:, None]
    tl.store(lse + place * positions + n, log, mask=there)

    if G > 0:
        group = tl.arange(0, GROUPS)
        sums = tl.zeros([BM, GROUPS], tl.float32)
        count = tl.zeros([GROUPS], tl.float32)
        for start in range(0, tokens, BT):
            key = start + tl.arange(0, BT)
            keep = key < tokens
            k0, k1 = load_rows(k_base, key * k_pos, keep, D, D0, D1, False)
            scores = exponents(q0, q1, k0, k1, keep, scale, D1)
            chosen = tl.load(
                token_mask + row * mask_row + group[None, :] * mask_group + key[:, None],
                mask=keep[:, None] & (group < G)[None, :], other=0,
            )  # fmt: skip
            chosen = (chosen != 0).to(tl.float32)
            sums = tl.dot(tl.exp2(scores - log[:, None]), chosen, sums, input_precision="tf32x3")
            count += tl.sum(chosen, 0)
        tl.store(
            maps + (place * G + group[None, :]) * positions + n[:, None], sums / tl.maximum(count, 1.0)[None, :],
            mask=there[:, None] & (group < G)[None, :],
        )  # fmt: skip

    id_k_base, id_v_base = plane(id_k, row, id_k_row, head, id_k_head), plane(id_v, row, id_v_row, head, id_v_head)
    region_base = region + row * region_row
    begin = 0
    for c in tl.static_range(C):
        end = tl.load(ends + row * ends_row + c)
        last = tl.minimum(end, packed)
        # Twice through the few tokens: the second sum of rows that a running softmax takes would cost more registers.
        top, total, _, _ = nothing(BM, D0, D1)
        for start in range(begin, last, BS):
            key = start + tl.arange(0, BS)
            keep = key < last
            k0, k1 = load_rows(id_k_base, key * id_k_pos, keep, D, D0, D1, False)
            top, total = _extend(top, total, exponents(q0, q1, k0, k1, keep, scale, D1))
        _, log = _finish(top, total)
        tl.store(id_lse + (place * C + c) * positions + n, log, mask=there)
        weight = stream_weight(weights + row * weights_row + c, region_base + c * region_stream, n, there, REGION)
        for start in range(begin, last, BS):
            key = start + tl.arange(0, BS)
            keep = key < last
            k0, k1 = load_rows(id_k_base, key * id_k_pos, keep, D, D0, D1, False)
            p = tl.exp2(exponents(q0, q1, k0, k1, keep, scale, D1) - log[:, None]) * weight[:, None]
            v0, v1 = load_rows(id_v_base, key * id_v_pos, keep, D, D0, D1, False)
            out0, out1 = add_product(out0, out1, p, v0, v1, D1)
        begin = end

    store_rows(plane(out, row, o_row, head, o_head), n * o_pos, there, out0, out1, D, D0, D1)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    stream_ends: Tensor,
    scale: Tensor,
    region: Tensor | None,
    token_mask: Tensor | None,
    chosen: Tiles,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.identity_cross_attention` on a GPU, and what its backward needs.

    Args:
        q: [R, H, N, d], float32, float16 or bfloat16; so are all keys and values.
        k, v: [R, H, T, d].
        id_k, id_v: [R, H, S, d].
        stream_ends: int32 [R, C].
        scale: float32 [R, C].
        region: float32 [R, C, N], or None for 1 everywhere.
        token_mask: bool or number [R, G, T], or None.
        chosen: queries of a program and text tokens of a step, 16 or more of each.

    Returns:
        The output [R, H, N, d], in dtype and in memory like q; the maps [R, G, N]; and logarithms to base 2 of the
        softmaxes' sums over the text [R, H, N] and over the streams [R, H, C, N]. All but the first are float32.
    """
    rows, heads, positions, width = q.shape
    streams, groups = stream_ends.shape[1], 0 if token_mask is None else token_mask.shape[1]
    out = like(q)
    q, k, v, id_k, id_v = map(readable, (q, k, v, id_k, id_v))
    stream_ends, scale = unit_stride(stream_ends), unit_stride(scale)
    area = scale if region is None else unit_stride(region)
    marks = scale if token_mask is None else unit_stride(token_mask)
    lse = floats(q, rows, heads, positions)
    id_lse = floats(q, rows, heads, streams, positions)
    maps = floats(q, rows, heads, groups, positions)
    _forward[(triton.cdiv(positions, chosen.queries), heads, rows)](
        q, k, v, id_k, id_v, stream_ends, scale, area, marks, out, lse, id_lse, maps,
        *strides(q, k, v, id_k, id_v), stream_ends.stride(0), scale.stride(0), *area.stride()[:2],
        *marks.stride()[:2], *strides(out),
        heads, positions, k.shape[2], id_k.shape[2], width**-0.5 * LOG2E.value,
        width, *split_width(width), streams, groups, region is not None,
        chosen.queries, chosen.keys, STREAM_STEP, num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    return out, maps.mean(1), lse, id_lse


def unit_stride(values: Tensor) -> Tensor:
    """The kernels take any strides but that of the last dimension, which must be 1."""
    return values if values.stride(-1) == 1 else values.contiguous()


def like(values: Tensor) -> Tensor:
    """Memory for heads, in the order of that of `values` where the kernels can write it."""
    return torch.empty_like(values if values.stride(-1) == 1 else values.contiguous())


def floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


# What both directions compile with: two streams, two maps.
HEADS = ("q", "k", "v", "id_k", "id_v", "out", "d_out", "d_q", "d_k", "d_v")
FLOATS = ("weights", "region", "share", "lse", "id_lse", "maps", "d_maps", "inner", "id_inner")


def each_variant(
    name: str, entry: str, kernel: Any, options: dict[str, Any], architecture: int, width: int
) -> Iterator[Variant]:
    """A kernel of K2 at one head dimension; `entry` of the tuning table has its tiles."""
    types = dict.fromkeys(HEADS, "*bf16") | dict.fromkeys(FLOATS, "*fp32")
    types |= {"ends": "*i32", "token_mask": "*i1", "scale": "fp32"}
    strided = ("q", "k", "v", "id_k", "id_v", "o", "do", "dq", "dk", "dv")
    aligned = [f"{tensor}_{axis}" for tensor in strided for axis in ("row", "pos")]
    aligned += ["region_row", "region_stream", "dm_row", "dm_group", "positions"]
    first, second = split_width(width)
    for size, chosen in each_tiles(entry, architecture, width):
        constants = {"D": width, "D0": first, "D1": second, "BM": chosen.queries, "BT": chosen.keys, "BS": STREAM_STEP}
        yield Variant(
            f"identity.{name} d={width} {size}", kernel,
            {argument: kind for argument, kind in types.items() if argument in kernel.arg_names},
            {argument: value for argument, value in constants.items() if argument in kernel.arg_names} | options,
            tuple(argument for argument in aligned if argument in kernel.arg_names), chosen.warps, chosen.stages,
        )  # fmt: skip


def variants(architecture: int) -> Iterator[Variant]:
    """What is compiled ahead of time."""
    for width in WIDTHS:
        options = {"C": 2, "G": 2, "REGION": True}
        yield from each_variant("forward", "identity_forward", _forward, options, architecture, width)
