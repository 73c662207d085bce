"""The ops for callers: arguments checked, implementation chosen by name or by device.

"auto" is Triton for tensors on a CUDA device that the kernels take, and the reference for all else; whichever runs,
the result is the one that `reference` defines, up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import alternatives, ops, reference
from storyloom_kernels.foreground import ForegroundMethod
from storyloom_kernels.foreground import foreground as reference_foreground
from storyloom_kernels.implementations import MAX_MAP_POSITIONS, Implementation, choose
from storyloom_kernels.layout import GroupLayout


def cross_frame_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    layout: GroupLayout | Tensor,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """K1: self-attention that also sees the foreground of the other frames of a group.

    See `reference.cross_frame_attention`, which defines it. Triton takes a layout of the same number of rows as a
    tensor too, so that a captured CUDA graph serves any grouping of them; it reads nothing on the host.

    Args:
        q, k, v: [R, H, N, d], floating point.
        mask: bool [R, N], True for foreground; None for no foreground anywhere.
        layout: which rows form a group, or the same as int32 [R, 2] on the tensors' device (`GroupLayout.bounds`).
        implementation: "auto", "triton", "reference", "sdpa", "flex" or "xformers".

    Returns:
        [R, H, N, d], dtype of ``q``.

    Raises:
        ValueError: the shapes do not fit, or the implementation cannot take them.
    """
    rows = layout.shape[0] if isinstance(layout, Tensor) else layout.rows
    reference.check_cross_frame(q, k, v, mask, rows)
    chosen = choose(implementation, ("triton", "reference", "sdpa", "flex", "xformers"), q, q.shape[-1])
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    if chosen == "triton":
        bounds = layout if isinstance(layout, Tensor) else layout.bounds(q.device)
        out: Tensor = ops.cross_frame_attention(q, k, v, mask, bounds)[0]
        return out
    groups = GroupLayout.from_bounds(layout) if isinstance(layout, Tensor) else layout
    if chosen == "reference":
        return reference.cross_frame_attention(q, k, v, mask, groups)
    others = {"sdpa": alternatives.sdpa, "flex": alternatives.flex, "xformers": alternatives.xformers}
    return others[chosen](q, k, v, mask, groups)


def foreground(
    maps: Tensor,
    method: ForegroundMethod = "otsu",
    value: float | None = None,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """K3: tells a character's positions from the rest of a map. See `foreground.foreground`, which defines it.

    Args:
        maps: [R, K, N], floating point.
        method, value: the rule.
        implementation: "auto", "triton" or "reference". Triton takes maps of up to 16384 positions.

    Returns:
        bool [R, K, N].

    Raises:
        ValueError: the rule makes no sense, or the implementation cannot take the maps.
    """
    chosen = choose(implementation, ("triton", "reference"), maps)
    if implementation == "auto" and maps.shape[-1] > MAX_MAP_POSITIONS:
        chosen = "reference"
    if chosen == "triton" and maps.numel():
        reference_foreground(maps[:0], method, value)  # for its errors
        mask: Tensor = ops.foreground(maps, method, value)
        return mask
    return reference_foreground(maps, method, value)


def identity_cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    stream_ends: Tensor,
    scale: Tensor,
    region: Tensor | None = None,
    token_mask: Tensor | None = None,
    *,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """K2: text cross-attention to which each character's identity tokens add what they say, and the text's maps.

    See `reference.identity_cross_attention`, which defines it and its arguments. Triton takes them in one launch, and
    makes the maps from the probabilities that it has at hand.

    Args:
        implementation: "auto", "triton", "reference", or "sdpa", which runs one `scaled_dot_product_attention` for the
            text and one for each stream, and one pass more for the maps.

    Returns:
        The output [R, H, N, d], dtype of ``q``, and the maps [R, K, N].

    Raises:
        ValueError: the shapes do not fit each other, or the implementation cannot take them.
    """
    reference.check_identity(q, k, v, id_k, id_v, stream_ends, scale, region, token_mask)
    chosen = choose(implementation, ("triton", "reference", "sdpa"), q, q.shape[-1])
    given = (q, k, v, id_k, id_v, stream_ends, scale, region, token_mask)
    if chosen == "triton":
        scale, region = scale.float(), None if region is None else region.float()
        out, maps, _, _ = ops.identity_cross_attention(
            q, k, v, id_k, id_v, stream_ends.int(), scale, region, token_mask
        )
        return out, maps
    return (alternatives.sdpa_identity if chosen == "sdpa" else reference.identity_cross_attention)(*given)


def cross_attention_with_maps(
    q: Tensor, k: Tensor, v: Tensor, token_mask: Tensor, *, implementation: Implementation = "auto"
) -> tuple[Tensor, Tensor]:
    """K2 without identities: text cross-attention and the maps of its characters.

    See `reference.cross_attention_with_maps`, which defines it.

    Args:
        q: [R, H, N, d].
        k, v: [R, H, T, d].
        token_mask: [R, K, T], see `attention_maps`.
        implementation: "auto", "triton" or "reference".

    Returns:
        The output [R, H, N, d] and the maps [R, K, N].

    Raises:
        ValueError: the shapes do not fit each other, or the implementation cannot take them.
    """
    if choose(implementation, ("triton", "reference"), q, q.shape[-1]) == "reference":
        return reference.cross_attention_with_maps(q, k, v, token_mask)
    nobody = k[:, :, :0]
    ends = torch.zeros(q.shape[0], 0, dtype=torch.int32, device=q.device)
    return identity_cross_attention(
        q, k, v, nobody, nobody, ends, ends.float(), None, token_mask, implementation="triton"
    )


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """K4: group normalisation, then SiLU. See `reference.group_norm_silu`, which defines it.

    A row's result has the same bits in any batch, as cuDNN and PyTorch do not promise.

    Args:
        x: [B, C, ...].
        groups: divides C.
        weight, bias: [C], both or neither.
        eps: added to the variance.
        silu: whether SiLU follows.
        implementation: "auto", "triton" or "reference".

    Returns:
        Shape, dtype and order in memory of ``x``.

    Raises:
        ValueError: the groups do not fit, or the implementation cannot take the tensor.
    """
    if choose(implementation, ("triton", "reference"), x) == "reference":
        return reference.group_norm_silu(x, groups, weight, bias, eps, silu)
    out: Tensor = ops.group_norm_silu(x, groups, weight, bias, eps, silu)[0]
    return out
