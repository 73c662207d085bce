"""Text cross-attention of rows that leave out some tokens, in plain PyTorch: the kernels take all tokens of a text.

R rows, H heads, N positions, T tokens, K characters, d head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from storyloom_kernels import identity_cross_attention


def attend_partly(q: Tensor, k: Tensor, v: Tensor, unseen: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """``cross_attention_with_maps`` over the tokens that each row sees.

    Args:
        q: [R, H, N, d].
        k, v: [R, H, T, d].
        unseen: bool [R, T], True for tokens that are left out; no row may leave out all.
        token_mask: [R, K, T], see ``storyloom_kernels.reference.attention_maps``.

    Returns:
        The output [R, H, N, d], dtype of ``v``, and the maps [R, K, N].
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    probabilities = scores.masked_fill(unseen[:, None, None], -math.inf).softmax(dim=-1)
    wanted = token_mask.ne(0).float()
    shares = wanted / wanted.sum(dim=-1, keepdim=True).clamp(min=1)
    maps = torch.matmul(shares, probabilities.mean(dim=1).transpose(-1, -2))
    return torch.matmul(probabilities.to(v.dtype), v), maps


def attend_partly_with_identity(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    unseen: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    stream_ends: Tensor,
    scale: Tensor,
    region: Tensor | None,
    token_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """``identity_cross_attention`` whose text is as of ``attend_partly``; see both for the arguments."""
    out, maps = attend_partly(q, k, v, unseen, token_mask)
    nothing = torch.zeros_like(k[:, :, :1])  # A text whose only token says nothing.
    streams, _ = identity_cross_attention(q, nothing, nothing, id_k, id_v, stream_ends, scale, region)
    return out + streams, maps
