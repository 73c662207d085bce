"""Our kernels in the form that TensorRT's ahead-of-time plugins want: inputs, then scalars, then outputs; one launch.

The loops are those of ``storyloom_kernels.fused``; here they read tensors as TensorRT lays them out, without gaps and
with heads after positions, and write nothing that only a backward pass would read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from storyloom_kernels.fused.cross_frame import _attend
from storyloom_kernels.fused.foreground import _otsu
from storyloom_kernels.fused.tiles import dot_rows, load_rows, store_rows


@triton.jit
def cross_frame_plugin(
    q, k, v,  # [R, N, H, d]
    index,  # int32 [R * N]
    offsets,  # int32 [R + 1]
    bounds,  # int32 [R, 2]
    positions,  # N
    out,  # [R, N, H, d]
    H: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BM: tl.constexpr,  # queries of a program
    BN: tl.constexpr,  # keys of a step
    SCALE: tl.constexpr,  # d^-0.5 * log2(e)
):  # fmt: skip
    row, head = tl.program_id(2), tl.program_id(1)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    there = n < positions
    step = H * D
    own = row.to(tl.int64) * positions * step + head * D
    q0, q1 = load_rows(q + own, n * step, there, D, D0, D1, False)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc0 = tl.zeros([BM, D0], tl.float32)
    acc1 = acc0
    if D1 > 0:
        acc1 = tl.zeros([BM, D1], tl.float32)
    for start in range(0, positions, BN):
        key = start + tl.arange(0, BN)
        top, total, acc0, acc1 = _attend(
            (top, total, acc0, acc1), q0, q1, k + own, v + own, key * step, key * step, key < positions, SCALE,
            D, D0, D1, False,
        )  # fmt: skip
    first, last = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
    for part in tl.static_range(2):
        if part == 0:
            begin, end = tl.load(offsets + first), tl.load(offsets + row)
        else:
            begin, end = tl.load(offsets + row + 1), tl.load(offsets + last)
        for start in range(begin, end, BN):
            slot = start + tl.arange(0, BN)
            keep = slot < end
            place = tl.load(index + slot, mask=keep, other=0).to(tl.int64)
            top, total, acc0, acc1 = _attend(
                (top, total, acc0, acc1), q0, q1, k + head * D, v + head * D, place * step, place * step, keep, SCALE,
                D, D0, D1, False,
            )  # fmt: skip
    store_rows(out + own, n * step, there, acc0 / total[:, None], acc1 / total[:, None], D, D0, D1)


@triton.jit
def cross_attention_plugin(
    q,  # [R, N, H, d]
    k, v,  # [R, T, H, d]
    token_mask,  # bool [R, K, T]
    positions,  # N
    tokens,  # T
    characters,  # K, 16 at most
    out,  # [R, N, H, d]
    maps,  # float32 [R, H, K, N]
    H: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BM: tl.constexpr,  # queries of a program
    BN: tl.constexpr,  # tokens of a step
    SCALE: tl.constexpr,  # d^-0.5 * log2(e)
):  # fmt: skip
    row, head = tl.program_id(2), tl.program_id(1)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    there = n < positions
    step = H * D
    own = row.to(tl.int64) * positions * step + head * D
    text = row.to(tl.int64) * tokens * step + head * D
    q0, q1 = load_rows(q + own, n * step, there, D, D0, D1, False)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc0 = tl.zeros([BM, D0], tl.float32)
    acc1 = acc0
    if D1 > 0:
        acc1 = tl.zeros([BM, D1], tl.float32)
    for start in range(0, tokens, BN):
        key = start + tl.arange(0, BN)
        top, total, acc0, acc1 = _attend(
            (top, total, acc0, acc1), q0, q1, k + text, v + text, key * step, key * step, key < tokens, SCALE,
            D, D0, D1, False,
        )  # fmt: skip
    store_rows(out + own, n * step, there, acc0 / total[:, None], acc1 / total[:, None], D, D0, D1)

    group = tl.arange(0, 16)
    sums = tl.zeros([BM, 16], tl.float32)
    count = tl.zeros([16], tl.float32)
    for start in range(0, tokens, BN):
        key = start + tl.arange(0, BN)
        keep = key < tokens
        k0, k1 = load_rows(k + text, key * step, keep, D, D0, D1, False)
        shares = tl.exp2(dot_rows(q0, q1, k0, k1, D1) * SCALE - top[:, None]) / total[:, None]
        chosen = tl.load(
            token_mask + (row * characters + group[None, :]) * tokens + key[:, None],
            mask=keep[:, None] & (group < characters)[None, :], other=0,
        )  # fmt: skip
        chosen = (chosen != 0).to(tl.float32)
        sums = tl.dot(shares, chosen, sums, input_precision="tf32x3")
        count += tl.sum(chosen, 0)
    place = ((row * H + head) * characters + group).to(tl.int64)[None, :] * positions + n[:, None]
    tl.store(maps + place, sums / tl.maximum(count, 1.0)[None, :], mask=there[:, None] & (group < characters)[None, :])


@triton.jit
def identity_plugin(
    attended,  # [R, N, H, d]
    q,  # [R, N, H, d]
    id_k, id_v,  # [R, I, H, d]
    ends,  # int32 [R, C]
    scale,  # float32 [R, C]
    owner,  # int32 [R, C]
    maps,  # float32 [S, K, N]
    present,  # bool [S, K]
    source_of_row,  # int32 [R]
    positions,  # N
    tokens,  # I
    streams,  # C
    characters,  # K
    out,  # [R, N, H, d]
    H: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BM: tl.constexpr,  # queries of a program
    BN: tl.constexpr,  # tokens of a step
    SCALE: tl.constexpr,  # d^-0.5 * log2(e)
):  # fmt: skip
    """A stream without tokens costs nothing, and a row without streams no more than a copy."""
    row, head = tl.program_id(2), tl.program_id(1)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    there = n < positions
    step = H * D
    own = row.to(tl.int64) * positions * step + head * D
    text = row.to(tl.int64) * tokens * step + head * D
    q0, q1 = load_rows(q + own, n * step, there, D, D0, D1, False)
    a0, a1 = load_rows(attended + own, n * step, there, D, D0, D1, False)
    out0, out1 = a0.to(tl.float32), a1.to(tl.float32)
    source = tl.load(source_of_row + row).to(tl.int64)
    area, seen = maps + source * characters * positions, present + source * characters
    peak, total = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    for k in range(0, characters):
        peak = tl.maximum(peak, _map_of(area, seen, k, positions, n, there))
    for k in range(0, characters):
        total += _share_of(area, seen, k, positions, n, there, peak)
    total = tl.maximum(total, 1.0)
    begin = tl.load(ends) * 0
    for c in range(0, streams):
        end = tl.load(ends + row * streams + c)
        who = tl.load(owner + row * streams + c)
        share = _share_of(area, seen, tl.maximum(who, 0), positions, n, there, peak) / total
        weight = tl.load(scale + row * streams + c) * tl.where(who < 0, 1.0, share)
        top, sums = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
        acc0 = tl.zeros([BM, D0], tl.float32)
        acc1 = acc0
        if D1 > 0:
            acc1 = tl.zeros([BM, D1], tl.float32)
        for start in range(begin, end, BN):
            key = start + tl.arange(0, BN)
            top, sums, acc0, acc1 = _attend(
                (top, sums, acc0, acc1), q0, q1, id_k + text, id_v + text, key * step, key * step, key < end, SCALE,
                D, D0, D1, False,
            )  # fmt: skip
        factor = tl.where(sums > 0, weight / tl.where(sums > 0, sums, 1.0), 0.0)[:, None]
        out0 += factor * acc0
        if D1 > 0:
            out1 += factor * acc1
        begin = end
    store_rows(out + own, n * step, there, out0, out1, D, D0, D1)


@triton.jit
def _map_of(area, seen, k, positions, n, there):
    """A character's map at some positions; 0 if the row has not the character."""
    here = tl.load(seen + k) != 0
    return tl.load(area + k * positions + n, mask=there & here, other=0.0)


@triton.jit
def _share_of(area, seen, k, positions, n, there, peak):
    """The square of a character's map relative to the highest; where no map says anything, 1 if it is in the row."""
    known = peak >= 1.1754943508222875e-38
    silent = (tl.load(seen + k) != 0).to(tl.float32)
    relative = tl.where(known, _map_of(area, seen, k, positions, n, there) / tl.where(known, peak, 1.0), silent)
    return relative * relative


@triton.jit
def foreground_plugin(
    maps,  # float32 [S, K, N]
    positions,  # N
    mask,  # bool [S, K, N]
    BLOCK: tl.constexpr,  # power of 2, at least N
):
    """Otsu's rule."""
    n = tl.arange(0, BLOCK)
    there = n < positions
    start = tl.program_id(0).to(tl.int64) * positions
    x = tl.load(maps + start + n, mask=there, other=0.0)
    x = tl.where(tl.abs(x) < float("inf"), x, 0.0)
    low = tl.min(tl.where(there, x, float("inf")), 0)
    extent = tl.max(tl.where(there, x, float("-inf")), 0) - low
    levels = tl.where(extent > 0, tl.div_rn(x - low, tl.where(extent > 0, extent, 1.0)), 0.0)
    tl.store(mask + start + n, _otsu(levels, there, positions, 256).to(tl.uint8), mask=there)


@triton.jit
def bank_plugin(
    mask,  # bool [R, N]
    positions,  # N
    index,  # int32 [R * N]
    offsets,  # int32 [R + 1]
    COUNT: tl.constexpr,  # positions of a step through the rows before
    SCAN: tl.constexpr,  # positions of a step through the row
):
    """``compact_kernel`` with its outputs last. Slots past the last are left as they are: nothing reads them."""
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
