"""The ops, defined in plain differentiable PyTorch for any device.

R rows, H heads, N positions of a layer, T text tokens, K characters, d head dimension. Equation numbers are those of
the Storynizor paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels.layout import GroupLayout


def cross_frame_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layout: GroupLayout) -> Tensor:
    """Self-attention that also sees the foreground of the other frames of a group (equation 4 with the masks of 6).

    A row attends to all of its own N positions and, in every other row of its group, to the positions whose mask is
    True: the bank. Queries are not restricted; one softmax runs over the union. With an empty bank this is plain
    self-attention. Each group is computed by itself, so its result does not depend on what other groups are there.

    Args:
        q, k, v: [R, H, N, d], floating point.
        mask: bool [R, N], True for foreground; None for no foreground anywhere.
        layout: which rows form a group.

    Returns:
        [R, H, N, d], dtype of ``q``.

    Raises:
        ValueError: the shapes do not fit each other or the layout.
    """
    if q.ndim != 4 or k.shape != q.shape or v.shape != q.shape or q.shape[0] != layout.rows:
        raise ValueError(f"q, k and v must be [{layout.rows}, H, N, d] for this layout; got {_shapes(q, k, v)}")
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    if mask.dtype != torch.bool or mask.shape != (q.shape[0], q.shape[2]):
        raise ValueError(f"mask must be bool [{q.shape[0]}, {q.shape[2]}]; got {mask.dtype} {list(mask.shape)}")
    return torch.cat([_group_attention(q[rows], k[rows], v[rows], mask[rows]) for rows in layout.slices()])


def _group_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    frames, _, positions, _ = q.shape
    # Positions of the bank in the group's F * N; its length is read on the host.
    bank = mask.flatten().nonzero().squeeze(1)
    if frames == 1 or bank.numel() == 0:
        return F.scaled_dot_product_attention(q, k, v)
    from_others = bank // positions != torch.arange(frames, device=bank.device)[:, None]
    visible = torch.cat([from_others.new_ones(frames, positions), from_others], dim=1)
    return F.scaled_dot_product_attention(
        q, _with_bank(k, bank), _with_bank(v, bank), attn_mask=visible[:, None, None, :]
    )


def _with_bank(values: Tensor, bank: Tensor) -> Tensor:
    """[F, H, N, d] -> [F, H, N + M, d]: every frame's own values, then the M values of the group's bank."""
    frames, heads, positions, width = values.shape
    everyone = values.transpose(0, 1).reshape(heads, frames * positions, width)
    return torch.cat([values, everyone[:, bank].expand(frames, -1, -1, -1)], dim=2)


def attention_maps(q: Tensor, k: Tensor, token_mask: Tensor) -> Tensor:
    """Where the text says that each character is (equation 5).

    The probability softmax(q k^T / sqrt(d)) over all T tokens, averaged over heads and over the character's tokens.
    Softmax and averages run in float32 at least. Differentiable in ``q`` and ``k``.

    Args:
        q: [R, H, N, d].
        k: [R, H, T, d].
        token_mask: [R, K, T], bool or number, non-zero where a token belongs to a character.

    Returns:
        [R, K, N], float32 (float64 for float64 input), in [0, 1]; 0 where a row has no token of the character.
    """
    return _maps(_probabilities(q, k), token_mask)


def cross_attention_with_maps(q: Tensor, k: Tensor, v: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Text cross-attention and the maps of its characters, from one computation of the probabilities.

    Args:
        q: [R, H, N, d].
        k, v: [R, H, T, d].
        token_mask: [R, K, T], see ``attention_maps``.

    Returns:
        The attention's output [R, H, N, d], dtype of ``v``, and the maps [R, K, N] as of ``attention_maps``.
    """
    probabilities = _probabilities(q, k)
    return probabilities.to(v.dtype) @ v, _maps(probabilities, token_mask)


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q must be [R, H, N, d] and k [R, H, T, d]; got {_shapes(q, k)}")
    scores: Tensor = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))


def _maps(probabilities: Tensor, token_mask: Tensor) -> Tensor:
    rows, _, _, tokens = probabilities.shape
    if token_mask.ndim != 3 or token_mask.shape[0] != rows or token_mask.shape[2] != tokens:
        raise ValueError(f"token_mask must be [{rows}, K, {tokens}]; got {list(token_mask.shape)}")
    chosen = (token_mask != 0).to(probabilities.dtype)
    share: Tensor = chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.matmul(share, probabilities.mean(dim=1).transpose(-1, -2))


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)
