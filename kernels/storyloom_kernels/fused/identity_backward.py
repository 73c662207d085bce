"""K2's gradients, through its output and through its maps.

One kernel takes tiles of queries, as the forward does; one takes tiles of keys, of the text or of a stream, and goes
through all queries in order. There are no atomics.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyloom_kernels.fused.identity import (
    GROUPS,
    STREAM_STEP,
    each_variant,
    exponents,
    floats,
    like,
    nothing,
    stream_weight,
    unit_stride,
)
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
)
from storyloom_kernels.fused.variants import WIDTHS, Variant
from storyloom_kernels.tuning import Tiles


@triton.jit
def _probabilities(
    q0, q1, do0, do1, log, k_base, v_base, k_pos, v_pos, key, keep, scale, dm, share, length,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A tile of keys, their probabilities [BM, keys], and the gradient of these from the output and G maps."""
    k0, k1 = load_rows(k_base, key * k_pos, keep, D, D0, D1, False)
    v0, v1 = load_rows(v_base, key * v_pos, keep, D, D0, D1, False)
    p = tl.exp2(exponents(q0, q1, k0, k1, keep, scale, D1) - log[:, None])
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
    q0, q1 = load_rows(plane(q, row, q_row, head, q_head), n * q_pos, there, D, D0, D1, False)
    do0, do1 = load_rows(plane(d_out, row, do_row, head, do_head), n * do_pos, there, D, D0, D1, False)
    _, _, dq0, dq1 = nothing(BM, D0, D1)

    k_base, v_base = plane(k, row, k_row, head, k_head), plane(v, row, v_row, head, v_head)
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
        dq0, dq1 = add_product(dq0, dq1, p * (dp - total[:, None]), k0, k1, D1)

    id_k_base, id_v_base = plane(id_k, row, id_k_row, head, id_k_head), plane(id_v, row, id_v_row, head, id_v_head)
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
        weight = stream_weight(weights + row * weights_row + c, region_base + c * region_stream, n, there, REGION)
        for start in range(begin, last, BS):
            key = start + tl.arange(0, BS)
            k0, k1, p, dp = _probabilities(
                q0, q1, do0, do1, log, id_k_base, id_v_base, id_k_pos, id_v_pos, key, key < last, scale, dm, share, 0,
                D, D0, D1, 0,
            )  # fmt: skip
            ds = p * (dp - total[:, None]) * weight[:, None]
            dq0, dq1 = add_product(dq0, dq1, ds, k0, k1, D1)
        begin = end

    factor = scale / LOG2E
    store_rows(plane(d_q, row, dq_row, head, dq_head), n * dq_pos, there, dq0 * factor, dq1 * factor, D, D0, D1)


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
        k0, k1 = load_rows(plane(k, row, k_row, head, k_head), key * k_pos, keep, D, D0, D1, False)
        v0, v1 = load_rows(plane(v, row, v_row, head, v_head), key * v_pos, keep, D, D0, D1, False)
        _, _, dk0, dk1 = nothing(BT, D0, D1)
        _, _, dv0, dv1 = nothing(BT, D0, D1)
        if G > 0:
            group = tl.arange(0, GROUPS)
            part = tl.load(
                share + (row * G + group[None, :]) * length + key[:, None],
                mask=keep[:, None] & (group < G)[None, :], other=0.0,
            )  # fmt: skip
        q_base, do_base = plane(q, row, q_row, head, q_head), plane(d_out, row, do_row, head, do_head)
        lse_base, inner_base = lse + (place * C + stream) * positions, inner + (place * C + stream) * positions
        for start in range(0, positions, BM):
            n = start + tl.arange(0, BM)
            there = n < positions
            # Queries beyond the last have no gradient: their d_out, d_maps and inner are 0.
            q0, q1 = load_rows(q_base, n * q_pos, there, D, D0, D1, False)
            do0, do1 = load_rows(do_base, n * do_pos, there, D, D0, D1, False)
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
                weight = stream_weight(
                    weights + row * weights_row + stream, region + row * region_row + stream * region_stream,
                    n, there, REGION,
                )  # fmt: skip
                p *= weight[None, :]
            ds = p * (dp - tl.load(inner_base + n, mask=there, other=0.0)[None, :])
            dv0, dv1 = add_product(dv0, dv1, p, do0, do1, D1)
            dk0, dk1 = add_product(dk0, dk1, ds, q0, q1, D1)
        factor = scale / LOG2E
        store_rows(plane(d_k, row, dk_row, head, dk_head), key * dk_pos, keep, dk0 * factor, dk1 * factor, D, D0, D1)
        store_rows(plane(d_v, row, dv_row, head, dv_head), key * dv_pos, keep, dv0, dv1, D, D0, D1)


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
    of_queries: Tiles,
    of_keys: Tiles,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`.

    Args:
        q, k, v, id_k, id_v, stream_ends, scale, region, token_mask: as given to `forward`.
        lse, id_lse: from `forward`.
        d_out: [R, H, N, d], q's dtype.
        d_maps: float32 [R, G, N], or None where no gradient comes through the maps.
        of_queries: queries of a program and text tokens of a step.
        of_keys: queries of a step and keys of a program.

    Returns:
        Gradients of q, k, v, id_k and id_v, in dtype and in memory like these, and float32 ones of scale and region
        (None for no region). Those of identity tokens beyond the last stream are 0.
    """
    rows, heads, positions, width = q.shape
    tokens, packed, streams = k.shape[2], id_k.shape[2], stream_ends.shape[1]
    dq, dk, dv, d_id_k, d_id_v = map(like, (q, k, v, id_k, id_v))
    d_id_k.zero_()
    d_id_v.zero_()
    q, k, v, id_k, id_v, d_out = map(readable, (q, k, v, id_k, id_v, d_out))
    stream_ends, scale = unit_stride(stream_ends), unit_stride(scale)
    area = scale if region is None else unit_stride(region)
    groups, share, dm = 0, scale, scale
    if token_mask is not None and d_maps is not None:
        groups, dm = token_mask.shape[1], unit_stride(d_maps)
        chosen = (token_mask != 0).to(torch.float32)
        share = (chosen / (heads * chosen.sum(-1, keepdim=True).clamp(min=1))).contiguous()

    inner = floats(q, rows, heads, positions)
    id_inner = floats(q, rows, heads, streams, positions)
    score_scale = width**-0.5 * LOG2E.value
    _backward_queries[(triton.cdiv(positions, of_queries.queries), heads, rows)](
        q, k, v, id_k, id_v, stream_ends, scale, area, share, lse, id_lse, d_out, dm, dq, inner, id_inner,
        *strides(q, k, v, id_k, id_v), stream_ends.stride(0), scale.stride(0), *area.stride()[:2],
        *strides(d_out), *dm.stride()[:2], *strides(dq),
        heads, positions, tokens, packed, score_scale,
        width, *split_width(width), streams, groups, region is not None,
        of_queries.queries, of_queries.keys, STREAM_STEP, num_warps=of_queries.warps, num_stages=of_queries.stages,
    )  # fmt: skip
    for is_identity, keys, values, d_keys, d_values, logs, sums in (
        (False, k, v, dk, dv, lse, inner),
        (True, id_k, id_v, d_id_k, d_id_v, id_lse, id_inner),
    ):
        softmaxes, length = streams if is_identity else 1, keys.shape[2]
        if softmaxes * length == 0:
            continue
        _backward_keys[(softmaxes * triton.cdiv(length, of_keys.keys), heads, rows)](
            q, keys, values, stream_ends, scale, area, share, logs, sums, d_out, dm, d_keys, d_values,
            *strides(q, keys, values), stream_ends.stride(0), scale.stride(0), *area.stride()[:2],
            *strides(d_out), *dm.stride()[:2], *strides(d_keys, d_values),
            heads, positions, length, score_scale,
            width, *split_width(width), softmaxes, 0 if is_identity else groups, is_identity,
            is_identity and region is not None, of_keys.queries, of_keys.keys,
            num_warps=of_keys.warps, num_stages=of_keys.stages,
        )  # fmt: skip

    through = id_inner.sum(1)
    if region is None:
        return dq, dk, dv, d_id_k, d_id_v, through.sum(-1), None
    return dq, dk, dv, d_id_k, d_id_v, (through * region).sum(-1), scale[:, :, None] * through


def variants(architecture: int) -> Iterator[Variant]:
    """What is compiled ahead of time."""
    both = {"C": 2, "G": 2, "REGION": True}
    text = {"C": 1, "G": 2, "STREAMS": False, "REGION": False}
    streams = {"C": 2, "G": 0, "STREAMS": True, "REGION": True}
    kernels = (
        ("query_gradient", "identity_query_gradient", _backward_queries, both),
        ("text_gradient", "identity_key_gradient", _backward_keys, text),
        ("stream_gradient", "identity_key_gradient", _backward_keys, streams),
    )
    for width, (name, entry, kernel, options) in product(WIDTHS, kernels):
        yield from each_variant(name, entry, kernel, options, architecture, width)
