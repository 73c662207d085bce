"""K2, text cross-attention with the identity streams of the characters: forward and backward.

One program takes a tile of queries of one head and row, goes through the text, and then through the tokens of each
stream between bounds read from device memory; an empty stream costs nothing. Each softmax has its own normaliser, so
what the backward keeps is one logarithm per softmax and query. Maps are written per head and averaged afterwards: a
sum over heads inside the kernel would need atomics, whose order is not fixed. A row's result depends on no other row
and not on how many there are, and its output not on whether maps are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyloom_kernels.aot import WIDTHS, Variant
from storyloom_kernels.fused.tiles import LOG2E, dot_rows, load_rows, split_width, store_rows
from storyloom_kernels.tuning import Tiles

# `tl.dot` sums over 16 columns or more; token groups are padded to it.
GROUPS: tl.constexpr = tl.constexpr(16)
# Identity tokens of a step. Most encoders give 4 or 16 of a character.
STREAM_STEP = 16


@triton.jit
def _plane(pointer, row, row_stride, head, head_stride):
    """Where the [positions, d] of a head and row begin.

    The launcher sees to strides in multiples of 8. Triton itself tells only multiples of 16 from any number, and would
    load heads of 40 one value at a time.
    """
    return pointer + tl.multiple_of(row * row_stride + head * head_stride, 8)


@triton.jit
def _load(base, place, stride, keep, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    return load_rows(base, tl.multiple_of(place * stride, 8), keep, D, D0, D1, False)


@triton.jit
def _store(base, place, stride, keep, x0, x1, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    store_rows(base, tl.multiple_of(place * stride, 8), keep, x0, x1, D, D0, D1)


@triton.jit
def _scores(q0, q1, k0, k1, keep, scale, D1: tl.constexpr):
    """Exponents of 2 of the softmax [BM, keys]; -inf for keys that do not exist, which else would score 0."""
    return tl.where(keep[None, :], dot_rows(q0, q1, k0, k1, D1) * scale, float("-inf"))


@triton.jit
def _extend(top, total, scores):
    """The largest exponent and the sum of the powers, with one more tile of keys. The first tile has a key."""
    higher = tl.maximum(top, tl.max(scores, 1))
    return higher, total * tl.exp2(top - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)


@triton.jit
def _nothing(BM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """An empty softmax and an empty sum of rows."""
    acc0 = tl.zeros([BM, D0], tl.float32)
    acc1 = acc0
    if D1 > 0:
        acc1 = tl.zeros([BM, D1], tl.float32)
    return tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32), acc0, acc1


@triton.jit
def _add_product(acc0, acc1, p, x0, x1, D1: tl.constexpr):
    """[m, n] times rows [n, d], in the dtype of the rows, onto a sum."""
    p = p.to(x0.dtype)
    acc0 = tl.dot(p, x0, acc0, input_precision="tf32x3")
    if D1 > 0:
        acc1 = tl.dot(p, x1, acc1, input_precision="tf32x3")
    return acc0, acc1


@triton.jit
def _finish(top, total):
    """What to divide by, and the logarithm to keep. Without a key: 1, since there is nothing to divide, and -inf."""
    total = tl.where(total == 0.0, 1.0, total)
    return total, top + tl.log2(total)


@triton.jit
def _weight(weights, region, n, there, REGION: tl.constexpr):
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
    q0, q1 = _load(_plane(q, row, q_row, head, q_head), n, q_pos, there, D, D0, D1)

    k_base, v_base = _plane(k, row, k_row, head, k_head), _plane(v, row, v_row, head, v_head)
    top, total, out0, out1 = _nothing(BM, D0, D1)
    for start in range(0, tokens, BT):
        key = start + tl.arange(0, BT)
        keep = key < tokens
        k0, k1 = _load(k_base, key, k_pos, keep, D, D0, D1)
        scores = _scores(q0, q1, k0, k1, keep, scale, D1)
        before = top
        top, total = _extend(top, total, scores)
        v0, v1 = _load(v_base, key, v_pos, keep, D, D0, D1)
        shrink = tl.exp2(before - top)[:, None]
        out0 *= shrink
        if D1 > 0:
            out1 *= shrink
        out0, out1 = _add_product(out0, out1, tl.exp2(scores - top[:, None]), v0, v1, D1)
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
            k0, k1 = _load(k_base, key, k_pos, keep, D, D0, D1)
            scores = _scores(q0, q1, k0, k1, keep, scale, D1)
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

    id_k_base, id_v_base = _plane(id_k, row, id_k_row, head, id_k_head), _plane(id_v, row, id_v_row, head, id_v_head)
    region_base = region + row * region_row
    begin = 0
    for c in tl.static_range(C):
        end = tl.load(ends + row * ends_row + c)
        last = tl.minimum(end, packed)
        # Twice through the few tokens: the second sum of rows that a running softmax takes would cost more registers.
        top, total, _, _ = _nothing(BM, D0, D1)
        for start in range(begin, last, BS):
            key = start + tl.arange(0, BS)
            keep = key < last
            k0, k1 = _load(id_k_base, key, id_k_pos, keep, D, D0, D1)
            top, total = _extend(top, total, _scores(q0, q1, k0, k1, keep, scale, D1))
        _, log = _finish(top, total)
        tl.store(id_lse + (place * C + c) * positions + n, log, mask=there)
        weight = _weight(weights + row * weights_row + c, region_base + c * region_stream, n, there, REGION)
        for start in range(begin, last, BS):
            key = start + tl.arange(0, BS)
            keep = key < last
            k0, k1 = _load(id_k_base, key, id_k_pos, keep, D, D0, D1)
            p = tl.exp2(_scores(q0, q1, k0, k1, keep, scale, D1) - log[:, None]) * weight[:, None]
            v0, v1 = _load(id_v_base, key, id_v_pos, keep, D, D0, D1)
            out0, out1 = _add_product(out0, out1, p, v0, v1, D1)
        begin = end

    _store(_plane(out, row, o_row, head, o_head), n, o_pos, there, out0, out1, D, D0, D1)


@triton.jit
def _probabilities(
    q0, q1, do0, do1, log, k_base, v_base, k_pos, v_pos, key, keep, scale, dm, share, length,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A tile of keys, their probabilities [BM, keys], and the gradient of these from the output and G maps."""
    k0, k1 = _load(k_base, key, k_pos, keep, D, D0, D1)
    v0, v1 = _load(v_base, key, v_pos, keep, D, D0, D1)
    p = tl.exp2(_scores(q0, q1, k0, k1, keep, scale, D1) - log[:, None])
    dp = dot_rows(do0, do1, v0, v1, D1)
    if G > 0:
        group = tl.arange(0, GROUPS)
        part = tl.load(
            share + group[:, None] * length + key[None, :], mask=(group < G)[:, None] & keep[None, :], other=0.0
        )
        dp = tl.dot(dm, part, dp, input_precision="tf32x3")
    return k0, k1, p, dp


@triton.jit
def _backward_queries(
    q,  # [R, H, N, d] by strides; the last is 1 in every tensor
    k,  # [R, H, T, d]
    v,
    id_k,  # [R, H, S, d]
    id_v,
    ends,  # int32 [R, C]
    weights,  # float32 [R, C]
    region,  # float32 [R, C, N]; not read without REGION
    share,  # float32 [R, G, T] without gaps: part of each token in a map of one head, over the number of heads
    lse,  # float32 [R, H, N] without gaps, from the forward
    id_lse,  # float32 [R, H, C, N] without gaps, from the forward
    d_out,  # [R, H, N, d]
    d_maps,  # float32 [R, G, N]; not read for G = 0
    d_q,  # [R, H, N, d]
    inner,  # float32 [R, H, N] without gaps: sum over the text of probability times its gradient
    id_inner,  # float32 [R, H, C, N] without gaps: d_out times the stream's own output, without its weight
    q_row, q_head, q_pos,  # strides, in elements
    k_row, k_head, k_pos,
    v_row, v_head, v_pos,
    id_k_row, id_k_head, id_k_pos,
    id_v_row, id_v_head, id_v_pos,
    ends_row,
    weights_row,
    region_row, region_stream,
    do_row, do_head, do_pos,
    dm_row, dm_group,
    dq_row, dq_head, dq_pos,
    heads,
    positions,  # N
    tokens,  # T
    packed,  # S
    scale,  # d^-0.5 * log2(e)
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    C: tl.constexpr,  # streams
    G: tl.constexpr,  # token groups whose maps have a gradient
    REGION: tl.constexpr,  # there is a region
    BM: tl.constexpr,  # queries of a program
    BT: tl.constexpr,  # text tokens of a step
    BS: tl.constexpr,  # identity tokens of a step
):  # fmt: skip
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    there = n < positions
    place = row * heads + head
    q0, q1 = _load(_plane(q, row, q_row, head, q_head), n, q_pos, there, D, D0, D1)
    do0, do1 = _load(_plane(d_out, row, do_row, head, do_head), n, do_pos, there, D, D0, D1)
    _, _, dq0, dq1 = _nothing(BM, D0, D1)

    k_base, v_base = _plane(k, row, k_row, head, k_head), _plane(v, row, v_row, head, v_head)
    log = tl.load(lse + place * positions + n, mask=there, other=0.0)
    dm = log
    if G > 0:
        group = tl.arange(0, GROUPS)
        dm = tl.load(
            d_maps + row * dm_row + group[None, :] * dm_group + n[:, None],
            mask=there[:, None] & (group < G)[None, :], other=0.0,
        )  # fmt: skip
    share_base = share + row * G * tokens
    total = tl.zeros([BM], tl.float32)
    for start in range(0, tokens, BT):
        key = start + tl.arange(0, BT)
        k0, k1, p, dp = _probabilities(
            q0, q1, do0, do1, log, k_base, v_base, k_pos, v_pos, key, key < tokens, scale, dm, share_base, tokens,
            D, D0, D1, G,
        )  # fmt: skip
        total += tl.sum(p * dp, 1)
    tl.store(inner + place * positions + n, total, mask=there)
    for start in range(0, tokens, BT):
        key = start + tl.arange(0, BT)
        k0, k1, p, dp = _probabilities(
            q0, q1, do0, do1, log, k_base, v_base, k_pos, v_pos, key, key < tokens, scale, dm, share_base, tokens,
            D, D0, D1, G,
        )  # fmt: skip
        dq0, dq1 = _add_product(dq0, dq1, p * (dp - total[:, None]), k0, k1, D1)

    id_k_base, id_v_base = _plane(id_k, row, id_k_row, head, id_k_head), _plane(id_v, row, id_v_row, head, id_v_head)
    region_base = region + row * region_row
    begin = 0
    for c in tl.static_range(C):
        end = tl.load(ends + row * ends_row + c)
        last = tl.minimum(end, packed)
        log = tl.load(id_lse + (place * C + c) * positions + n, mask=there, other=0.0)
        total = tl.zeros([BM], tl.float32)
        for start in range(begin, last, BS):
            key = start + tl.arange(0, BS)
            k0, k1, p, dp = _probabilities(
                q0, q1, do0, do1, log, id_k_base, id_v_base, id_k_pos, id_v_pos, key, key < last, scale, dm, share, 0,
                D, D0, D1, 0,
            )  # fmt: skip
            total += tl.sum(p * dp, 1)
        tl.store(id_inner + (place * C + c) * positions + n, total, mask=there)
        weight = _weight(weights + row * weights_row + c, region_base + c * region_stream, n, there, REGION)
        for start in range(begin, last, BS):
            key = start + tl.arange(0, BS)
            k0, k1, p, dp = _probabilities(
                q0, q1, do0, do1, log, id_k_base, id_v_base, id_k_pos, id_v_pos, key, key < last, scale, dm, share, 0,
                D, D0, D1, 0,
            )  # fmt: skip
            ds = p * (dp - total[:, None]) * weight[:, None]
            dq0, dq1 = _add_product(dq0, dq1, ds, k0, k1, D1)
        begin = end

    factor = scale / LOG2E
    _store(_plane(d_q, row, dq_row, head, dq_head), n, dq_pos, there, dq0 * factor, dq1 * factor, D, D0, D1)


@triton.jit
def _backward_keys(
    q,  # [R, H, N, d] by strides; the last is 1 in every tensor
    k,  # [R, H, L, d]: the text, or the packed identity tokens
    v,
    ends,  # int32 [R, C]; not read without STREAMS
    weights,  # float32 [R, C]; not read without STREAMS
    region,  # float32 [R, C, N]; not read without REGION
    share,  # float32 [R, G, L] without gaps, see _backward_queries; not read for G = 0
    lse,  # float32 [R, H, C, N] without gaps, from the forward
    inner,  # float32 [R, H, C, N] without gaps, from _backward_queries
    d_out,  # [R, H, N, d]
    d_maps,  # float32 [R, G, N]; not read for G = 0
    d_k,  # [R, H, L, d]
    d_v,
    q_row, q_head, q_pos,  # strides, in elements
    k_row, k_head, k_pos,
    v_row, v_head, v_pos,
    ends_row,
    weights_row,
    region_row, region_stream,
    do_row, do_head, do_pos,
    dm_row, dm_group,
    dk_row, dk_head, dk_pos,
    dv_row, dv_head, dv_pos,
    heads,
    positions,  # N
    length,  # L
    scale,  # d^-0.5 * log2(e)
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    C: tl.constexpr,  # streams; 1 for the text
    G: tl.constexpr,  # token groups whose maps have a gradient
    STREAMS: tl.constexpr,  # the keys are identity tokens, with bounds and weights; else all L are of one softmax
    REGION: tl.constexpr,  # there is a region
    BM: tl.constexpr,  # queries of a step
    BT: tl.constexpr,  # keys of a program
):  # fmt: skip
    row, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    stream, chunk = tl.program_id(0) % C, tl.program_id(0) // C
    begin, end = chunk * BT, length
    if STREAMS:
        end = tl.minimum(tl.load(ends + row * ends_row + stream), length)
        if stream > 0:
            begin += tl.load(ends + row * ends_row + stream - 1)
    # The grid has room for streams as long as all of them together; most programs have nothing to do.
    if begin < end:
        key = begin + tl.arange(0, BT)
        keep = key < end
        place = row * heads + head
        k0, k1 = _load(_plane(k, row, k_row, head, k_head), key, k_pos, keep, D, D0, D1)
        v0, v1 = _load(_plane(v, row, v_row, head, v_head), key, v_pos, keep, D, D0, D1)
        _, _, dk0, dk1 = _nothing(BT, D0, D1)
        _, _, dv0, dv1 = _nothing(BT, D0, D1)
        if G > 0:
            group = tl.arange(0, GROUPS)
            part = tl.load(
                share + (row * G + group[None, :]) * length + key[:, None],
                mask=keep[:, None] & (group < G)[None, :], other=0.0,
            )  # fmt: skip
        q_base, do_base = _plane(q, row, q_row, head, q_head), _plane(d_out, row, do_row, head, do_head)
        lse_base, inner_base = lse + (place * C + stream) * positions, inner + (place * C + stream) * positions
        for start in range(0, positions, BM):
            n = start + tl.arange(0, BM)
            there = n < positions
            # Queries beyond the last have no gradient: their d_out, d_maps and inner are 0.
            q0, q1 = _load(q_base, n, q_pos, there, D, D0, D1)
            do0, do1 = _load(do_base, n, do_pos, there, D, D0, D1)
            log = tl.load(lse_base + n, mask=there, other=0.0)
            p = tl.exp2(tl.where(keep[:, None], dot_rows(k0, k1, q0, q1, D1) * scale, float("-inf")) - log[None, :])
            dp = dot_rows(v0, v1, do0, do1, D1)
            if G > 0:
                dm = tl.load(
                    d_maps + row * dm_row + group[:, None] * dm_group + n[None, :],
                    mask=(group < G)[:, None] & there[None, :], other=0.0,
                )  # fmt: skip
                dp = tl.dot(part, dm, dp, input_precision="tf32x3")
            if STREAMS:
                weight = _weight(
                    weights + row * weights_row + stream, region + row * region_row + stream * region_stream,
                    n, there, REGION,
                )  # fmt: skip
                p *= weight[None, :]
            ds = p * (dp - tl.load(inner_base + n, mask=there, other=0.0)[None, :])
            dv0, dv1 = _add_product(dv0, dv1, p, do0, do1, D1)
            dk0, dk1 = _add_product(dk0, dk1, ds, q0, q1, D1)
        factor = scale / LOG2E
        _store(_plane(d_k, row, dk_row, head, dk_head), key, dk_pos, keep, dk0 * factor, dk1 * factor, D, D0, D1)
        _store(_plane(d_v, row, dv_row, head, dv_head), key, dv_pos, keep, dv0, dv1, D, D0, D1)


# Tiles for any GPU: the largest of those tried that stay in registers from sm_80 to sm_120.


def default_forward_tiles(width: int) -> Tiles:
    """Queries of a program, and text tokens of a step."""
    return Tiles(64, 32, 4, 2) if width <= 96 else Tiles(32, 16, 8, 2)


def default_query_tiles(width: int) -> Tiles:
    """For the gradient of the queries: as of the forward."""
    return Tiles(64, 16, 4, 2) if width <= 96 else Tiles(16, 16, 4, 1)


def default_key_tiles(width: int) -> Tiles:
    """For the gradients of keys and values: queries of a step, and keys of a program."""
    return Tiles(32, 64, 8, 2) if width <= 96 else Tiles(32, 16, 4, 2)


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
    *,
    tiles: Tiles | None = None,
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
        tiles: queries of a program and text tokens of a step, 16 or more of each; None for `default_forward_tiles`.

    Returns:
        The output [R, H, N, d], in dtype and in memory like q; the maps [R, G, N]; and logarithms to base 2 of the
        softmaxes' sums over the text [R, H, N] and over the streams [R, H, C, N]. All but the first are float32.
    """
    rows, heads, positions, width = q.shape
    tiles = tiles or default_forward_tiles(width)
    streams, groups = stream_ends.shape[1], 0 if token_mask is None else token_mask.shape[1]
    out = _like(q)
    q, k, v, id_k, id_v = map(_aligned, (q, k, v, id_k, id_v))
    stream_ends, scale = _unit_stride(stream_ends), _unit_stride(scale)
    area = scale if region is None else _unit_stride(region)
    marks = scale if token_mask is None else _unit_stride(token_mask)
    lse = _floats(q, rows, heads, positions)
    id_lse = _floats(q, rows, heads, streams, positions)
    maps = _floats(q, rows, heads, groups, positions)
    _forward[(triton.cdiv(positions, tiles.queries), heads, rows)](
        q, k, v, id_k, id_v, stream_ends, scale, area, marks, out, lse, id_lse, maps,
        *_strides(q, k, v, id_k, id_v), stream_ends.stride(0), scale.stride(0), *area.stride()[:2],
        *marks.stride()[:2], *_strides(out),
        heads, positions, k.shape[2], id_k.shape[2], width**-0.5 * math.log2(math.e),
        width, *split_width(width), streams, groups, region is not None,
        tiles.queries, tiles.keys, STREAM_STEP, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, maps.mean(1), lse, id_lse


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    stream_ends: Tensor,
    scale: Tensor,
    region: Tensor | None,
    token_mask: Tensor | None,
    lse: Tensor,
    id_lse: Tensor,
    d_out: Tensor,
    d_maps: Tensor | None,
    *,
    query_tiles: Tiles | None = None,
    key_tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`.

    Args:
        q, k, v, id_k, id_v, stream_ends, scale, region, token_mask: as given to `forward`.
        lse, id_lse: from `forward`.
        d_out: [R, H, N, d], q's dtype.
        d_maps: float32 [R, G, N], or None where no gradient comes through the maps.
        query_tiles: queries of a program and text tokens of a step; None for `default_query_tiles`.
        key_tiles: queries of a step and keys of a program; None for `default_key_tiles`.

    Returns:
        Gradients of q, k, v, id_k and id_v, in dtype and in memory like these, and float32 ones of scale and region
        (None for no region). Those of identity tokens beyond the last stream are 0.
    """
    rows, heads, positions, width = q.shape
    tokens, packed, streams = k.shape[2], id_k.shape[2], stream_ends.shape[1]
    dq, dk, dv, d_id_k, d_id_v = map(_like, (q, k, v, id_k, id_v))
    d_id_k.zero_()
    d_id_v.zero_()
    q, k, v, id_k, id_v, d_out = map(_aligned, (q, k, v, id_k, id_v, d_out))
    stream_ends, scale = _unit_stride(stream_ends), _unit_stride(scale)
    area = scale if region is None else _unit_stride(region)
    groups, share, dm = 0, scale, scale
    if token_mask is not None and d_maps is not None:
        groups, dm = token_mask.shape[1], _unit_stride(d_maps)
        chosen = (token_mask != 0).to(torch.float32)
        share = (chosen / (heads * chosen.sum(-1, keepdim=True).clamp(min=1))).contiguous()

    inner = _floats(q, rows, heads, positions)
    id_inner = _floats(q, rows, heads, streams, positions)
    score_scale = width**-0.5 * math.log2(math.e)
    tiles = query_tiles or default_query_tiles(width)
    _backward_queries[(triton.cdiv(positions, tiles.queries), heads, rows)](
        q, k, v, id_k, id_v, stream_ends, scale, area, share, lse, id_lse, d_out, dm, dq, inner, id_inner,
        *_strides(q, k, v, id_k, id_v), stream_ends.stride(0), scale.stride(0), *area.stride()[:2],
        *_strides(d_out), *dm.stride()[:2], *_strides(dq),
        heads, positions, tokens, packed, score_scale,
        width, *split_width(width), streams, groups, region is not None,
        tiles.queries, tiles.keys, STREAM_STEP, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    tiles = key_tiles or default_key_tiles(width)
    for is_identity, keys, values, d_keys, d_values, logs, sums in (
        (False, k, v, dk, dv, lse, inner),
        (True, id_k, id_v, d_id_k, d_id_v, id_lse, id_inner),
    ):
        softmaxes, length = streams if is_identity else 1, keys.shape[2]
        if softmaxes * length == 0:
            continue
        _backward_keys[(softmaxes * triton.cdiv(length, tiles.keys), heads, rows)](
            q, keys, values, stream_ends, scale, area, share, logs, sums, d_out, dm, d_keys, d_values,
            *_strides(q, keys, values), stream_ends.stride(0), scale.stride(0), *area.stride()[:2],
            *_strides(d_out), *dm.stride()[:2], *_strides(d_keys, d_values),
            heads, positions, length, score_scale,
            width, *split_width(width), softmaxes, 0 if is_identity else groups, is_identity,
            is_identity and region is not None, tiles.queries, tiles.keys,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip

    through = id_inner.sum(1)
    if region is None:
        return dq, dk, dv, d_id_k, d_id_v, through.sum(-1), None
    return dq, dk, dv, d_id_k, d_id_v, (through * region).sum(-1), scale[:, :, None] * through


def _strides(*tensors: Tensor) -> list[int]:
    """Of rows, heads and positions."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _unit_stride(values: Tensor) -> Tensor:
    """The kernels take any strides but that of the last dimension, which must be 1."""
    return values if values.stride(-1) == 1 else values.contiguous()


def _aligned(values: Tensor) -> Tensor:
    """Heads [., ., ., d] for the kernels, which read 8 values at a time. Copies only where a stride forbids that."""
    strides = [stride for size, stride in zip(values.shape[:3], values.stride()[:3], strict=True) if size > 1]
    return _unit_stride(values if all(stride % 8 == 0 for stride in strides) else values.contiguous())


def _like(values: Tensor) -> Tensor:
    """Memory for heads, in the order of that of `values` where the kernels can write it."""
    return torch.empty_like(values if values.stride(-1) == 1 else values.contiguous())


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def variants(_: int) -> Iterator[Variant]:
    """What is compiled ahead of time: two streams, two maps, and the default tiles."""
    heads = ("q", "k", "v", "id_k", "id_v", "out", "d_out", "d_q", "d_k", "d_v")
    floats = ("weights", "region", "share", "lse", "id_lse", "maps", "d_maps", "inner", "id_inner")
    types = dict.fromkeys(heads, "*bf16") | dict.fromkeys(floats, "*fp32")
    types |= {"ends": "*i32", "token_mask": "*i1", "scale": "fp32"}
    strided = ("q", "k", "v", "id_k", "id_v", "o", "do", "dq", "dk", "dv")
    aligned = [f"{tensor}_{axis}" for tensor in strided for axis in ("row", "pos")]
    aligned += ["region_row", "region_stream", "dm_row", "dm_group", "positions"]
    for width, (name, kernel, options, choose) in product(
        WIDTHS,
        (
            ("forward", _forward, {"C": 2, "G": 2, "REGION": True}, default_forward_tiles),
            ("query_gradient", _backward_queries, {"C": 2, "G": 2, "REGION": True}, default_query_tiles),
            (
                "text_gradient", _backward_keys, {"C": 1, "G": 2, "STREAMS": False, "REGION": False},
                default_key_tiles,
            ),
            (
                "stream_gradient", _backward_keys, {"C": 2, "G": 0, "STREAMS": True, "REGION": True},
                default_key_tiles,
            ),
        ),
    ):  # fmt: skip
        first, second = split_width(width)
        tiles = choose(width)
        constants = {"D": width, "D0": first, "D1": second, "BM": tiles.queries, "BT": tiles.keys, "BS": STREAM_STEP}
        yield Variant(
            f"identity.{name} d={width}", kernel,
            {argument: kind for argument, kind in types.items() if argument in kernel.arg_names},
            {argument: value for argument, value in constants.items() if argument in kernel.arg_names} | options,
            tuple(argument for argument in aligned if argument in kernel.arg_names), tiles.warps, tiles.stages,
        )  # fmt: skip
