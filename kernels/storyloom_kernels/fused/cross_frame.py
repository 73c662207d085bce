"""K1, masked cross-frame attention: forward and backward.

One program takes a tile of queries of one head and row. It goes through the N keys of its own row, then through the
bank: the foreground of the other rows of its group, as two contiguous ranges of the bank's slots around the row's own.
Both ends of each range are read from device memory, so the cost follows the true number of keys and a captured graph
serves any mask and any layout of as many rows. The order of the sums depends on the group alone; there are no atomics.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
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


@triton.jit
def _attend(
    state, q0, q1, k_base, v_base, k_offsets, v_offsets, keep, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """One tile of keys of the running softmax, in powers of 2."""
    top, total, acc0, acc1 = state
    k0, k1 = load_rows(k_base, k_offsets, keep, D, D0, D1, ALL)
    scores = dot_rows(q0, q1, k0, k1, D1) * scale
    if not ALL:
        scores = tl.where(keep[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    p = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(p, 1)
    v0, v1 = load_rows(v_base, v_offsets, keep, D, D0, D1, ALL)
    p = p.to(v0.dtype)  # before the sums are scaled, which takes fewer registers
    acc0 *= shrink[:, None]
    if D1 > 0:
        acc1 *= shrink[:, None]
    acc0, acc1 = add_product(acc0, acc1, p, v0, v1, D1)
    return higher, total, acc0, acc1


@triton.jit
def _bank_range(offsets, first, row, last, PART: tl.constexpr):
    """Slots of the bank that a row of the group [first, last) sees: before its own (part 0) and after them (part 1)."""
    if PART == 0:
        begin, end = tl.load(offsets + first), tl.load(offsets + row)
    else:
        begin, end = tl.load(offsets + row + 1), tl.load(offsets + last)
    return begin, end


@triton.jit
def _bank_offsets(index, slot, keep, positions, k_row, k_pos, v_row, v_pos):
    """Where the keys and values of slots begin, in elements from those of their head in the first row."""
    place = tl.load(index + slot, mask=keep, other=0)
    row = place // positions
    key = place - row * positions
    return row.to(tl.int64) * k_row + key * k_pos, row.to(tl.int64) * v_row + key * v_pos


@triton.jit
def forward_kernel(
    q,  # [R, H, N, d] by strides; the last is 1 in every tensor
    k,
    v,
    out,
    lse,  # float32 [R, H, N]: logarithm to base 2 of the sum of the powers
    index,  # int32 [R * N]: the bank, row * N + position of each slot
    offsets,  # int32 [R + 1]: first slot of each row
    bounds,  # int32 [R, 2]: first and one past the last row of each row's group
    q_row, q_head, q_pos,  # strides, in elements
    k_row, k_head, k_pos,
    v_row, v_head, v_pos,
    o_row, o_head, o_pos,
    heads,
    positions,
    scale,  # d^-0.5 * log2(e)
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BM: tl.constexpr,  # queries of a program
    BN: tl.constexpr,  # keys of a step
    EVEN: tl.constexpr,  # positions is a multiple of BN
):  # fmt: skip
    row, head = tl.program_id(2), tl.program_id(1)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    there = n < positions
    q_base = plane(q, row, q_row, head, q_head)
    q0, q1 = load_rows(q_base, n * q_pos, there, D, D0, D1, False)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc0, acc1 = zero_rows(BM, D0, D1)

    k_own = plane(k, row, k_row, head, k_head)
    v_own = plane(v, row, v_row, head, v_head)
    for start in range(0, positions, BN):
        key = start + tl.arange(0, BN)
        top, total, acc0, acc1 = _attend(
            (top, total, acc0, acc1), q0, q1, k_own, v_own, key * k_pos, key * v_pos, key < positions, scale,
            D, D0, D1, EVEN,
        )  # fmt: skip

    first, last = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
    k_head_base, v_head_base = k + tl.multiple_of(head * k_head, 8), v + tl.multiple_of(head * v_head, 8)
    for part in tl.static_range(2):
        begin, end = _bank_range(offsets, first, row, last, part)
        for start in range(begin, end, BN):
            slot = start + tl.arange(0, BN)
            keep = slot < end
            k_offsets, v_offsets = _bank_offsets(index, slot, keep, positions, k_row, k_pos, v_row, v_pos)
            top, total, acc0, acc1 = _attend(
                (top, total, acc0, acc1), q0, q1, k_head_base, v_head_base, k_offsets, v_offsets, keep, scale,
                D, D0, D1, False,
            )  # fmt: skip

    o_base = plane(out, row, o_row, head, o_head)
    store_rows(o_base, n * o_pos, there, acc0 / total[:, None], acc1 / total[:, None], D, D0, D1)
    tl.store(lse + (row * heads + head) * positions + n, top + tl.log2(total), mask=there)


@triton.jit
def _query_gradient(
    grads, q0, q1, do0, do1, k_base, v_base, k_offsets, v_offsets, keep, lse, delta, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """What one tile of keys adds to the gradient of queries, without the factor d^-0.5."""
    dq0, dq1 = grads
    k0, k1 = load_rows(k_base, k_offsets, keep, D, D0, D1, ALL)
    v0, v1 = load_rows(v_base, v_offsets, keep, D, D0, D1, ALL)
    p = tl.exp2(dot_rows(q0, q1, k0, k1, D1) * scale - lse[:, None])
    if not ALL:
        p = tl.where(keep[None, :], p, 0.0)
    ds = p * (dot_rows(do0, do1, v0, v1, D1) - delta[:, None])
    return add_product(dq0, dq1, ds, k0, k1, D1)


@triton.jit
def query_gradient_kernel(
    q, k, v, d_out,  # [R, H, N, d] by strides
    d_q,  # [R, H, N, d], strides of q
    lse,  # float32 [R, H, N]
    delta,  # float32 [R, H, N]: sum over d of out * d_out
    index, offsets, bounds,  # as in the forward
    q_row, q_head, q_pos,
    k_row, k_head, k_pos,
    v_row, v_head, v_pos,
    o_row, o_head, o_pos,  # strides of d_out
    g_row, g_head, g_pos,  # strides of d_q
    heads,
    positions,
    scale,  # d^-0.5 * log2(e)
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(2), tl.program_id(1)
    n = tl.program_id(0) * BM + tl.arange(0, BM)
    there = n < positions
    q0, q1 = load_rows(plane(q, row, q_row, head, q_head), n * q_pos, there, D, D0, D1, False)
    do0, do1 = load_rows(plane(d_out, row, o_row, head, o_head), n * o_pos, there, D, D0, D1, False)
    flat = (row * heads + head) * positions + n
    # Rows that do not exist get a probability of 0, and with it no gradient.
    log_sum = tl.load(lse + flat, mask=there, other=float("inf"))
    inner = tl.load(delta + flat, mask=there, other=0.0)
    dq0, dq1 = zero_rows(BM, D0, D1)

    k_own = plane(k, row, k_row, head, k_head)
    v_own = plane(v, row, v_row, head, v_head)
    for start in range(0, positions, BN):
        key = start + tl.arange(0, BN)
        dq0, dq1 = _query_gradient(
            (dq0, dq1), q0, q1, do0, do1, k_own, v_own, key * k_pos, key * v_pos, key < positions, log_sum, inner,
            scale, D, D0, D1, EVEN,
        )  # fmt: skip

    first, last = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
    k_head_base, v_head_base = k + tl.multiple_of(head * k_head, 8), v + tl.multiple_of(head * v_head, 8)
    for part in tl.static_range(2):
        begin, end = _bank_range(offsets, first, row, last, part)
        for start in range(begin, end, BN):
            slot = start + tl.arange(0, BN)
            keep = slot < end
            k_offsets, v_offsets = _bank_offsets(index, slot, keep, positions, k_row, k_pos, v_row, v_pos)
            dq0, dq1 = _query_gradient(
                (dq0, dq1), q0, q1, do0, do1, k_head_base, v_head_base, k_offsets, v_offsets, keep,
                log_sum, inner, scale, D, D0, D1, False,
            )  # fmt: skip

    root = scale / LOG2E
    store_rows(plane(d_q, row, g_row, head, g_head), n * g_pos, there, dq0 * root, dq1 * root, D, D0, D1)


@triton.jit
def _key_gradient(
    grads, k0, k1, v0, v1, q_base, o_base, stats, lse, delta, q_pos, o_pos, positions, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """What all queries of one row add to the gradients of a tile of keys and values."""
    dk0, dk1, dv0, dv1 = grads
    for start in range(0, positions, BM):
        n = start + tl.arange(0, BM)
        there = n < positions
        q0, q1 = load_rows(q_base, n * q_pos, there, D, D0, D1, EVEN)
        do0, do1 = load_rows(o_base, n * o_pos, there, D, D0, D1, EVEN)
        log_sum = tl.load(lse + stats + n, mask=there, other=float("inf"))
        inner = tl.load(delta + stats + n, mask=there, other=0.0)
        p = tl.exp2(dot_rows(k0, k1, q0, q1, D1) * scale - log_sum[None, :])
        ds = (p * (dot_rows(v0, v1, do0, do1, D1) - inner[None, :])).to(q0.dtype)
        p = p.to(do0.dtype)
        # `add_product` twice, but in an order that takes fewer registers on some architectures.
        dv0 = tl.dot(p, do0, dv0, input_precision="tf32x3")
        dk0 = tl.dot(ds, q0, dk0, input_precision="tf32x3")
        if D1 > 0:
            dv1 = tl.dot(p, do1, dv1, input_precision="tf32x3")
            dk1 = tl.dot(ds, q1, dk1, input_precision="tf32x3")
    return dk0, dk1, dv0, dv1


@triton.jit
def key_gradient_kernel(
    q, k, v, d_out,  # [R, H, N, d] by strides
    d_k, d_v,  # float32 [R, H, N, d], contiguous
    lse, delta,  # float32 [R, H, N]
    index, offsets, bounds,
    q_row, q_head, q_pos,
    k_row, k_head, k_pos,
    v_row, v_head, v_pos,
    o_row, o_head, o_pos,
    heads,
    positions,
    scale,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BM: tl.constexpr,  # queries of a step
    BN: tl.constexpr,  # keys of a program
    EVEN: tl.constexpr,  # positions is a multiple of BM
    BANK: tl.constexpr,  # False: keys of a row, seen by its own queries; True: its bank's, seen by other rows'
):  # fmt: skip
    """Each key belongs to one program, which goes through the queries in order.

    The bank's launch follows the other one and adds to what that has written.
    """
    row, head = tl.program_id(2), tl.program_id(1)
    tile = tl.program_id(0) * BN + tl.arange(0, BN)
    if BANK:
        slot = tl.load(offsets + row) + tile
        keep = slot < tl.load(offsets + row + 1)
        key = tl.load(index + slot, mask=keep, other=row * positions) - row * positions
    else:
        keep = tile < positions
        key = tile
    k_base = plane(k, row, k_row, head, k_head)
    v_base = plane(v, row, v_row, head, v_head)
    first, last = tl.load(bounds + 2 * row), tl.load(bounds + 2 * row + 1)
    anything = tl.max(keep.to(tl.int32), 0) > 0
    if anything and ((not BANK) or last - first > 1):
        k0, k1 = load_rows(k_base, key * k_pos, keep, D, D0, D1, False)
        v0, v1 = load_rows(v_base, key * v_pos, keep, D, D0, D1, False)
        dk0, dk1 = zero_rows(BN, D0, D1)
        dv0, dv1 = dk0, dk1
        if BANK:
            for part in tl.static_range(2):
                if part == 0:
                    begin, end = first, row
                else:
                    begin, end = row + 1, last
                for other in range(begin, end):
                    wide = tl.cast(other, tl.int64)
                    dk0, dk1, dv0, dv1 = _key_gradient(
                        (dk0, dk1, dv0, dv1), k0, k1, v0, v1, plane(q, wide, q_row, head, q_head),
                        plane(d_out, wide, o_row, head, o_head), (wide * heads + head) * positions, lse, delta,
                        q_pos, o_pos, positions, scale, D, D0, D1, BM, EVEN,
                    )  # fmt: skip
        else:
            dk0, dk1, dv0, dv1 = _key_gradient(
                (dk0, dk1, dv0, dv1), k0, k1, v0, v1, plane(q, row, q_row, head, q_head),
                plane(d_out, row, o_row, head, o_head), (row * heads + head) * positions, lse, delta,
                q_pos, o_pos, positions, scale, D, D0, D1, BM, EVEN,
            )  # fmt: skip
        root = scale / LOG2E
        dk0, dk1 = dk0 * root, dk1 * root
        place = (row.to(tl.int64) * heads + head) * positions * D
        if BANK:
            before0, before1 = load_rows(d_k + place, key * D, keep, D, D0, D1, False)
            dk0, dk1 = dk0 + before0, dk1 + before1
            before0, before1 = load_rows(d_v + place, key * D, keep, D, D0, D1, False)
            dv0, dv1 = dv0 + before0, dv1 + before1
        store_rows(d_k + place, key * D, keep, dk0, dk1, D, D0, D1)
        store_rows(d_v + place, key * D, keep, dv0, dv1, D, D0, D1)


def forward(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, offsets: Tensor, bounds: Tensor, chosen: Tiles
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launches the forward.

    Args:
        q, k, v: [R, H, N, d] of one dtype.
        index, offsets: the bank, see `storyloom_kernels.bank`.
        bounds: int32 [R, 2], see `GroupLayout.bounds`.
        chosen: queries of a program and keys of a step.

    Returns:
        The output [R, H, N, d], and float32 [R, H, N], the base-2 logarithm of the sum of the softmax, for the
        backward.
    """
    rows, heads, positions, width = q.shape
    first, second = split_width(width)
    q, k, v = readable(q), readable(k), readable(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(rows, heads, positions, dtype=torch.float32, device=q.device)
    forward_kernel[(triton.cdiv(positions, chosen.queries), heads, rows)](
        q, k, v, out, lse, index, offsets, bounds, *strides(q, k, v, out), heads, positions,
        width**-0.5 * LOG2E.value, D=width, D0=first, D1=second, BM=chosen.queries, BN=chosen.keys,
        EVEN=positions % chosen.keys == 0, num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    return out, lse


def backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, index: Tensor, offsets: Tensor,
    bounds: Tensor, of_queries: Tiles, of_keys: Tiles,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launches the backward; gradients of q, k and v in their dtypes. Arguments as of `forward`.

    A program of the first kernel has the tile's queries and steps over keys; one of the second has its keys.
    """
    rows, heads, positions, width = q.shape
    first, second = split_width(width)
    q, k, v, d_out = readable(q), readable(k), readable(v), readable(d_out)
    delta = (out.float() * d_out.float()).sum(-1)
    d_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    d_k, d_v = (torch.empty(q.shape, dtype=torch.float32, device=q.device) for _ in range(2))
    shape = {"D": width, "D0": first, "D1": second}
    scale = width**-0.5 * LOG2E.value
    query_gradient_kernel[(triton.cdiv(positions, of_queries.queries), heads, rows)](
        q, k, v, d_out, d_q, lse, delta, index, offsets, bounds, *strides(q, k, v, d_out, d_q), heads, positions,
        scale, BM=of_queries.queries, BN=of_queries.keys, EVEN=positions % of_queries.keys == 0,
        num_warps=of_queries.warps, num_stages=of_queries.stages, **shape,
    )  # fmt: skip
    for bank in (False, True):
        key_gradient_kernel[(triton.cdiv(positions, of_keys.keys), heads, rows)](
            q, k, v, d_out, d_k, d_v, lse, delta, index, offsets, bounds, *strides(q, k, v, d_out), heads,
            positions, scale, BM=of_keys.queries, BN=of_keys.keys, EVEN=positions % of_keys.queries == 0, BANK=bank,
            num_warps=of_keys.warps, num_stages=of_keys.stages, **shape,
        )  # fmt: skip
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype)


def variants(architecture: int) -> Iterator[Variant]:
    """What is compiled ahead of time."""
    types = dict.fromkeys(("q", "k", "v", "out", "d_out", "d_q"), "*bf16")
    types |= dict.fromkeys(("lse", "delta", "d_k", "d_v"), "*fp32") | {"scale": "fp32"}
    types |= dict.fromkeys(("index", "offsets", "bounds"), "*i32")
    kernels: tuple[tuple[str, Any, str, dict[str, Any]], ...] = (
        ("forward", forward_kernel, "forward", {}),
        ("query_gradient", query_gradient_kernel, "query_gradient", {}),
        ("key_gradient", key_gradient_kernel, "key_gradient", {"BANK": False}),
        ("bank_gradient", key_gradient_kernel, "key_gradient", {"BANK": True}),
    )
    for width, (name, kernel, entry, extra) in product(WIDTHS, kernels):
        first, second = split_width(width)
        for size, chosen in each_tiles(f"cross_frame_{entry}", architecture, width):
            aligned = [f"{tensor}_{axis}" for tensor in "qkvog" for axis in ("row", "pos")] + ["positions"]
            aligned += [f"{tensor}_head" for tensor in "qkvog"] if width % 16 == 0 else []
            constants = {"D": width, "D0": first, "D1": second, "EVEN": True}
            constants |= {"BM": chosen.queries, "BN": chosen.keys} | extra
            used = set(kernel.arg_names)
            yield Variant(
                f"cross_frame.{name} d={width} {size}", kernel,
                {argument: kind for argument, kind in types.items() if argument in used}, constants,
                tuple(argument for argument in aligned if argument in used), chosen.warps, chosen.stages,
            )  # fmt: skip
