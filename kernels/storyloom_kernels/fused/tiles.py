"""What the attention kernels share: tiles of [positions, d], with d split into two powers of two.

`tl.dot` wants powers of two. A head dimension of 40 is held as 32 + 16 columns, 80 as 64 + 16 and 160 as 128 + 32,
which wastes far less than padding to 64, 128 and 256. Where `d` is a power of two there is no second part: `D1` is 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from storyloom_kernels.implementations import width_obstacle

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


def split_width(width: int) -> tuple[int, int]:
    """Columns of the two parts that hold a head of `width`.

    Raises:
        ValueError: the kernels do not hold heads of this width.
    """
    if obstacle := width_obstacle(width):
        raise ValueError(f"the Triton kernels cannot run: {obstacle}")
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return first, 0 if rest == 0 else max(16, triton.next_power_of_2(rest))


def readable(values: Tensor) -> Tensor:
    """A tensor that the kernels can read: d side by side, all else in multiples of 8; copied if need be."""
    strides = [stride for size, stride in zip(values.shape[:-1], values.stride()[:-1], strict=True) if size > 1]
    fits = values.stride(-1) == 1 and all(stride % 8 == 0 for stride in strides)
    return values if fits else values.clone(memory_format=torch.contiguous_format)


def strides(*tensors: Tensor) -> list[int]:
    """Of rows, heads and positions of each."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


@triton.jit
def plane(pointer, row, row_stride, head, head_stride):
    """Where the [positions, d] of a head and row begin."""
    return pointer + tl.multiple_of(row.to(tl.int64) * row_stride + head * head_stride, 8)


@triton.jit
def load_rows(base, offsets, keep, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ALL: tl.constexpr):
    """Rows of d contiguous values that start at element `offsets` [n] of `base`: [n, D0] and [n, D1].

    `keep` [n] says which rows exist; the others, and columns beyond D, are 0. ALL: they all exist. Offsets are
    multiples of 8, which `readable` sees to: Triton itself tells only multiples of 16 from any number, and would load
    heads of 40 one value at a time.
    """
    offsets = tl.multiple_of(offsets, 8)
    first = tl.arange(0, D0)
    if ALL:
        x0 = tl.load(base + offsets[:, None] + first[None, :])
    else:
        x0 = tl.load(base + offsets[:, None] + first[None, :], mask=keep[:, None], other=0.0)
    x1 = x0
    if D1 > 0:
        second = D0 + tl.arange(0, D1)
        if ALL and D0 + D1 == D:
            x1 = tl.load(base + offsets[:, None] + second[None, :])
        else:
            x1 = tl.load(
                base + offsets[:, None] + second[None, :], mask=keep[:, None] & (second < D)[None, :], other=0.0
            )
    return x0, x1


@triton.jit
def store_rows(base, offsets, keep, x0, x1, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """The inverse of `load_rows`, in the dtype of `base`."""
    offsets = tl.multiple_of(offsets, 8)
    first = tl.arange(0, D0)
    tl.store(base + offsets[:, None] + first[None, :], x0.to(base.dtype.element_ty), mask=keep[:, None])
    if D1 > 0:
        second = D0 + tl.arange(0, D1)
        tl.store(
            base + offsets[:, None] + second[None, :], x1.to(base.dtype.element_ty),
            mask=keep[:, None] & (second < D)[None, :],
        )  # fmt: skip


@triton.jit
def dot_rows(a0, a1, b0, b1, D1: tl.constexpr):
    """Products of rows, float32: [m, d] and [n, d] -> [m, n]."""
    product = tl.dot(a0, tl.trans(b0), input_precision="tf32x3")
    if D1 > 0:
        product = tl.dot(a1, tl.trans(b1), product, input_precision="tf32x3")
    return product


@triton.jit
def zero_rows(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """A sum of rows that has nothing in it yet, float32."""
    x0 = tl.zeros([ROWS, D0], tl.float32)
    x1 = x0
    if D1 > 0:
        x1 = tl.zeros([ROWS, D1], tl.float32)
    return x0, x1


@triton.jit
def add_product(sum0, sum1, p, x0, x1, D1: tl.constexpr):
    """Adds [m, n] times rows [n, d], in the dtype of the rows."""
    p = p.to(x0.dtype)
    sum0 = tl.dot(p, x0, sum0, input_precision="tf32x3")
    if D1 > 0:
        sum1 = tl.dot(p, x1, sum1, input_precision="tf32x3")
    return sum0, sum1
