"""The ops as `torch.library` knows them, so that eager, compiled, exported and captured code see the same op.

Each runs Triton on CUDA devices (and on the CPU under Triton's interpreter), and the reference elsewhere. Callers want
`functional`, which checks arguments and chooses; here shapes are taken as given.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from storyloom_kernels import reference
from storyloom_kernels.bank import compact
from storyloom_kernels.foreground import ForegroundMethod
from storyloom_kernels.foreground import foreground as reference_foreground
from storyloom_kernels.implementations import interpreting
from storyloom_kernels.layout import GroupLayout
from storyloom_kernels.tuning import Tiles, architecture, tiles


def _fused(tensor: Tensor) -> bool:
    return tensor.is_cuda or interpreting()


def _gradient_tiles(kernel: str, q: Tensor) -> tuple[Tiles, Tiles]:
    """Of the two kernels of a backward: that of the queries and that of the keys."""
    device, width, positions = architecture(q.device), q.shape[-1], q.shape[2]
    of_queries = tiles(f"{kernel}_query_gradient", device, width, positions)
    return of_queries, tiles(f"{kernel}_key_gradient", device, width, positions)


@torch.library.custom_op("storyloom::cross_frame_attention", mutates_args=())
def cross_frame_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K1: output [R, H, N, d], and for the backward the softmax's sums (0 from the reference) and the bank."""
    if _fused(q):
        from storyloom_kernels.fused import cross_frame
        from storyloom_kernels.fused.foreground import union_bank

        index, offsets = union_bank(mask)
        chosen = tiles("cross_frame_forward", architecture(q.device), q.shape[-1], q.shape[2])
        return *cross_frame.forward(q, k, v, index, offsets, bounds, chosen), index, offsets
    out = reference.cross_frame_attention(q, k, v, mask, GroupLayout.from_bounds(bounds))
    return out.contiguous(), q.new_zeros(q.shape[:3], dtype=torch.float32), *compact(mask)


@cross_frame_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32),
        q.new_empty(mask.numel(), dtype=torch.int32), q.new_empty(mask.shape[0] + 1, dtype=torch.int32),
    )  # fmt: skip


@torch.library.custom_op("storyloom::cross_frame_attention_backward", mutates_args=())
def cross_frame_attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bounds: Tensor, out: Tensor, lse: Tensor,
    index: Tensor, offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v of K1."""
    if _fused(q):
        from storyloom_kernels.fused import cross_frame

        chosen = _gradient_tiles("cross_frame", q)
        return cross_frame.backward(d_out, q, k, v, out, lse, index, offsets, bounds, *chosen)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        again = reference.cross_frame_attention(leaves[0], leaves[1], leaves[2], mask, GroupLayout.from_bounds(bounds))
        d_q, d_k, d_v = (x.contiguous() for x in torch.autograd.grad(again, leaves, d_out))
    return d_q, d_k, d_v


@cross_frame_attention_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bounds: Tensor, out: Tensor, lse: Tensor,
    index: Tensor, offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep_cross_frame(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _cross_frame_gradient(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = cross_frame_attention_backward(d_out, *ctx.saved_tensors)
    return *gradients, None, None


cross_frame_attention.register_autograd(_cross_frame_gradient, setup_context=_keep_cross_frame)


@torch.library.custom_op("storyloom::identity_cross_attention", mutates_args=())
def identity_cross_attention(
    q: Tensor, k: Tensor, v: Tensor, id_k: Tensor, id_v: Tensor, stream_ends: Tensor, scale: Tensor,
    region: Tensor | None, token_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """K2: output and maps, and for the backward the softmaxes' sums over text and streams (0 from the reference)."""
    if _fused(q):
        from storyloom_kernels.fused import identity

        chosen = tiles("identity_forward", architecture(q.device), q.shape[-1], q.shape[2])
        return identity.forward(q, k, v, id_k, id_v, stream_ends, scale, region, token_mask, chosen)
    out, maps = reference.identity_cross_attention(q, k, v, id_k, id_v, stream_ends, scale, region, token_mask)
    sums = q.new_zeros(q.shape[:3], dtype=torch.float32)
    streams = q.new_zeros(*q.shape[:2], stream_ends.shape[1], q.shape[2], dtype=torch.float32)
    return torch.empty_like(q).copy_(out), maps.contiguous(), sums, streams


@identity_cross_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, id_k: Tensor, id_v: Tensor, stream_ends: Tensor, scale: Tensor,
    region: Tensor | None, token_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, heads, positions, _ = q.shape
    groups = 0 if token_mask is None else token_mask.shape[1]
    whole = torch.promote_types(q.dtype, torch.float32)
    return (
        torch.empty_like(q), q.new_empty(rows, groups, positions, dtype=whole),
        q.new_empty(rows, heads, positions, dtype=torch.float32),
        q.new_empty(rows, heads, stream_ends.shape[1], positions, dtype=torch.float32),
    )  # fmt: skip


@torch.library.custom_op("storyloom::identity_cross_attention_backward", mutates_args=())
def identity_cross_attention_backward(
    d_out: Tensor, d_maps: Tensor, q: Tensor, k: Tensor, v: Tensor, id_k: Tensor, id_v: Tensor, stream_ends: Tensor,
    scale: Tensor, region: Tensor | None, token_mask: Tensor | None, lse: Tensor, id_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, id_k, id_v, scale and region of K2; that of an absent region is empty."""
    if _fused(q):
        from storyloom_kernels.fused import identity_backward

        *made, d_region = identity_backward.backward(
            q, k, v, id_k, id_v, stream_ends, scale, region, token_mask, lse, id_lse, d_out, d_maps,
            *_gradient_tiles("identity", q),
        )  # fmt: skip
        d_q, d_k, d_v, d_id_k, d_id_v, d_scale = made
        return d_q, d_k, d_v, d_id_k, d_id_v, d_scale, q.new_empty(0) if d_region is None else d_region
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v, id_k, id_v, scale)]
        area = None if region is None else region.detach().requires_grad_()
        out, maps = reference.identity_cross_attention(
            leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], stream_ends, leaves[5], area, token_mask
        )
        wanted = leaves if area is None else [*leaves, area]
        outputs, upstream = ([out, maps], [d_out, d_maps]) if maps.requires_grad else ([out], [d_out])
        found = torch.autograd.grad(outputs, wanted, upstream, materialize_grads=True)
    ordered = zip(found[:5], (q, k, v, id_k, id_v), strict=True)
    gradients = [torch.empty_like(like).copy_(gradient) for gradient, like in ordered]
    gradients += [x.contiguous() for x in found[5:]] + ([q.new_empty(0)] if area is None else [])
    return (*gradients,)  # type: ignore[return-value]


@identity_cross_attention_backward.register_fake
def _(
    d_out: Tensor, d_maps: Tensor, q: Tensor, k: Tensor, v: Tensor, id_k: Tensor, id_v: Tensor, stream_ends: Tensor,
    scale: Tensor, region: Tensor | None, token_mask: Tensor | None, lse: Tensor, id_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    made = [torch.empty_like(x) for x in (q, k, v, id_k, id_v)]
    return (*made, scale.new_empty(scale.shape), q.new_empty(0) if region is None else region.new_empty(region.shape))  # type: ignore[return-value]


def _keep_identity(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[2:])
    ctx.set_materialize_grads(True)


def _identity_gradient(ctx: Any, d_out: Tensor, d_maps: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    q, k, v, id_k, id_v, stream_ends, scale, region, token_mask, lse, id_lse = ctx.saved_tensors
    d_q, d_k, d_v, d_id_k, d_id_v, d_scale, d_region = identity_cross_attention_backward(
        d_out, d_maps, q, k, v, id_k, id_v, stream_ends, scale, region, token_mask, lse, id_lse
    )
    return d_q, d_k, d_v, d_id_k, d_id_v, None, d_scale, None if region is None else d_region, None


identity_cross_attention.register_autograd(_identity_gradient, setup_context=_keep_identity)


@torch.library.custom_op("storyloom::foreground", mutates_args=())
def foreground(maps: Tensor, method: str, value: float | None) -> Tensor:
    """K3: bool [R, K, N]."""
    rule = cast(ForegroundMethod, method)
    if _fused(maps):
        from storyloom_kernels.fused.foreground import foreground as fused

        return fused(maps, rule, value)
    return reference_foreground(maps, rule, value)


@foreground.register_fake
def _(maps: Tensor, method: str, value: float | None) -> Tensor:
    return maps.new_empty(maps.shape, dtype=torch.bool)


@torch.library.custom_op("storyloom::group_norm_silu", mutates_args=())
def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """K4: the result, and for the backward the groups' mean and 1 / standard deviation (0 from the reference)."""
    if _fused(x):
        from storyloom_kernels.fused.group_norm import group_norm_silu as fused

        return fused(x, groups, weight, bias, eps, silu)
    out = torch.empty_like(x).copy_(reference.group_norm_silu(x, groups, weight, bias, eps, silu))
    return out, x.new_zeros(x.shape[0], groups, dtype=torch.float32), x.new_zeros(
        x.shape[0], groups, dtype=torch.float32
    )  # fmt: skip


@group_norm_silu.register_fake
def _(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (x.new_empty(x.shape[0], groups, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), *statistics  # type: ignore[return-value]


@torch.library.custom_op("storyloom::group_norm_silu_backward", mutates_args=())
def group_norm_silu_backward(
    d_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    eps: float, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias of K4; those of an absent weight and bias are empty."""
    if _fused(x):
        from storyloom_kernels.fused.group_norm_backward import group_norm_silu_backward as fused

        d_x, d_weight, d_bias = fused(d_out, x, mean, rstd, groups, weight, bias, silu)
    else:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            scale, shift = (None if p is None else p.detach().requires_grad_() for p in (weight, bias))
            again = reference.group_norm_silu(leaf, groups, scale, shift, eps, silu)
            found = torch.autograd.grad(again, [leaf, *(p for p in (scale, shift) if p is not None)], d_out)
        d_x = torch.empty_like(x).copy_(found[0])
        d_weight, d_bias = found[1:] if weight is not None else (None, None)
    absent = [x.new_empty(0) if gradient is None else gradient for gradient in (d_weight, d_bias)]
    return d_x, absent[0], absent[1]


@group_norm_silu_backward.register_fake
def _(
    d_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
    eps: float, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    nothing = x.new_empty(0)
    d_weight, d_bias = (nothing.clone() if p is None else p.new_empty(p.shape) for p in (weight, bias))
    return torch.empty_like(x), d_weight, d_bias


def _keep_group_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.groups, weight, bias, ctx.eps, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _group_norm_gradient(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    d_x, d_weight, d_bias = group_norm_silu_backward(d_out, x, mean, rstd, ctx.groups, weight, bias, ctx.eps, ctx.silu)
    return d_x, None, None if weight is None else d_weight, None if bias is None else d_bias, None, None


group_norm_silu.register_autograd(_group_norm_gradient, setup_context=_keep_group_norm)
