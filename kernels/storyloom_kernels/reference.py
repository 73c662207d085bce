"""The ops, defined in plain differentiable PyTorch for any device.

R rows, H heads, N positions of a layer, T text tokens, K characters, d head dimension. Equation numbers are those of
the Storynizor paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

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
    check_cross_frame(q, k, v, mask, layout.rows)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.cat([_group_attention(q[rows], k[rows], v[rows], mask[rows]) for rows in layout.slices()])


def check_cross_frame(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rows: int) -> None:
    """Raises ValueError unless the arguments of ``cross_frame_attention`` fit each other and a layout of ``rows``."""
    if q.ndim != 4 or k.shape != q.shape or v.shape != q.shape or q.shape[0] != rows:
        raise ValueError(f"q, k and v must be [{rows}, H, N, d] for this layout; got {_shapes(q, k, v)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (q.shape[0], q.shape[2])):
        raise ValueError(f"mask must be bool [{q.shape[0]}, {q.shape[2]}]; got {mask.dtype} {list(mask.shape)}")


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


def identity_cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    stream_ends: Tensor,
    scale: Tensor,
    region: Tensor | None,
    token_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Text cross-attention to which each character's identity tokens add what they say, where the character is.

    ``Attn(q, k, v) + sum over c of scale[c] * region[c] * Attn(q, k_c, v_c)``: every attention has its own softmax over
    its own keys (decoupled cross-attention, as in IP-Adapter). The C streams of a row lie one after the other on one
    axis of S tokens, each as long as it needs to be. One of no tokens adds nothing; tokens beyond the last stream are
    not seen. Softmax and sum run in float32 at least. Differentiable in all but ``stream_ends`` and ``token_mask``.

    Args:
        q: [R, H, N, d].
        k, v: [R, H, T, d], the text.
        id_k, id_v: [R, H, S, d], the identity tokens.
        stream_ends: int [R, C], one past the last token of each stream; a stream begins where the one before it ends.
        scale: floating point [R, C].
        region: floating point [R, C, N], the part of a row where a stream acts; None for everywhere.
        token_mask: [R, K, T], see ``attention_maps``; None for no maps.

    Returns:
        The output [R, H, N, d], dtype of ``q``, and the maps of the text [R, K, N] as of ``attention_maps``.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    check_identity(q, k, v, id_k, id_v, stream_ends, scale, region, token_mask)
    probabilities = _probabilities(q, k)
    if token_mask is None:
        token_mask = k.new_zeros(k.shape[0], 0, k.shape[2])
    maps = _maps(probabilities, token_mask)
    out = (probabilities.to(v.dtype) @ v).to(probabilities.dtype)
    for seen, weight in identity_streams(id_k.shape[2], stream_ends, scale, region, out.dtype):
        out = out + weight * (_probabilities(q, id_k, seen).to(id_v.dtype) @ id_v)
    return out.to(q.dtype), maps


def identity_streams(
    tokens: int, stream_ends: Tensor, scale: Tensor, region: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """What each stream of ``identity_cross_attention`` sees of the S tokens, and what it counts.

    Args:
        tokens: S.
        stream_ends, scale, region: see ``identity_cross_attention``.
        dtype: of the weights.

    Yields:
        For each of the C streams, bool [R, 1, 1, S] and the weight [R, 1, N, 1], or [R, 1, 1, 1] without a region.
    """
    slot = torch.arange(tokens, device=stream_ends.device)
    begin = torch.zeros_like(stream_ends[:, :1])
    for stream in range(stream_ends.shape[1]):
        end = stream_ends[:, stream, None]
        own = (slot >= begin) & (slot < end)
        filled = own.any(1, keepdim=True)
        weight = scale[:, stream, None].to(dtype) * filled
        if region is not None:
            weight = weight * region[:, stream].to(dtype)
        # A softmax without a key is NaN, and so is its gradient: an empty stream sees all keys and then counts nothing.
        yield (own | ~filled)[:, None, None], weight[:, None, :, None]
        begin = end


def identity_maps(q: Tensor, id_k: Tensor, stream_ends: Tensor, blocks: Tensor) -> Tensor:
    """How much of the identity attention goes to each block of tokens, to train with (StoryMaker's attention loss).

    The probability of each token within its stream, averaged over heads and summed over the block's tokens. Softmax and
    sums run in float32 at least. Differentiable in ``q`` and ``id_k``.

    Args:
        q: [R, H, N, d].
        id_k, stream_ends: see ``identity_cross_attention``.
        blocks: [R, B, S], bool or number, non-zero where a token belongs to a block.

    Returns:
        [R, B, N], float32 (float64 for float64 input); in [0, 1] where each block lies within one stream.
    """
    rows, _, positions, _ = q.shape
    tokens = id_k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    if blocks.ndim != 3 or (blocks.shape[0], blocks.shape[2]) != (rows, tokens):
        raise ValueError(f"blocks must be [{rows}, B, {tokens}]; got {list(blocks.shape)}")
    everywhere = torch.ones(stream_ends.shape, dtype=wide, device=q.device)
    probabilities = q.new_zeros(rows, positions, tokens, dtype=wide)
    for seen, filled in identity_streams(tokens, stream_ends, everywhere, None, wide):
        probabilities = probabilities + filled[:, 0] * _probabilities(q, id_k, seen).mean(dim=1)
    return torch.matmul((blocks != 0).to(wide), probabilities.transpose(-1, -2))


def check_identity(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    id_k: Tensor,
    id_v: Tensor,
    stream_ends: Tensor,
    scale: Tensor,
    region: Tensor | None,
    token_mask: Tensor | None,
) -> None:
    """Raises ValueError unless the arguments of ``identity_cross_attention`` fit each other."""
    if q.ndim != 4:
        raise ValueError(f"q must be [R, H, N, d]; got {_shapes(q)}")
    rows, heads, positions, width = q.shape
    for names, (keys, values), length in (("k and v", (k, v), "T"), ("id_k and id_v", (id_k, id_v), "S")):
        fits = keys.ndim == 4 and (*keys.shape[:2], keys.shape[3]) == (rows, heads, width)
        if not fits or values.shape != keys.shape:
            raise ValueError(
                f"{names} must be [{rows}, {heads}, {length}, {width}] for q {_shapes(q)}; got {_shapes(keys, values)}"
            )
    if stream_ends.ndim != 2 or stream_ends.shape[0] != rows or stream_ends.is_floating_point():
        raise ValueError(f"stream_ends must be int [{rows}, C]; got {stream_ends.dtype} {_shapes(stream_ends)}")
    streams = stream_ends.shape[1]
    if scale.shape != (rows, streams):
        raise ValueError(f"scale must be [{rows}, {streams}] for stream_ends; got {_shapes(scale)}")
    if region is not None and region.shape != (rows, streams, positions):
        raise ValueError(f"region must be [{rows}, {streams}, {positions}] or None; got {_shapes(region)}")
    if token_mask is not None:
        _check_token_mask(token_mask, rows, k.shape[2])


def _probabilities(q: Tensor, k: Tensor, seen: Tensor | None = None) -> Tensor:
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q must be [R, H, N, d] and k [R, H, T, d]; got {_shapes(q, k)}")
    scores: Tensor = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))


def _maps(probabilities: Tensor, token_mask: Tensor) -> Tensor:
    rows, _, _, tokens = probabilities.shape
    _check_token_mask(token_mask, rows, tokens)
    chosen = (token_mask != 0).to(probabilities.dtype)
    share: Tensor = chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.matmul(share, probabilities.mean(dim=1).transpose(-1, -2))


def _check_token_mask(token_mask: Tensor, rows: int, tokens: int) -> None:
    if token_mask.ndim != 3 or token_mask.shape[0] != rows or token_mask.shape[2] != tokens:
        raise ValueError(f"token_mask must be [{rows}, K, {tokens}]; got {list(token_mask.shape)}")


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, silu: bool = True
) -> Tensor:
    """Group normalisation of each row, then SiLU; in float32 at least.

    Args:
        x: [B, C, ...].
        groups: of the channels; divides C.
        weight, bias: [C] or None.
        eps: added to the variance.
        silu: whether SiLU follows.

    Returns:
        The shape and dtype of ``x``, in channels-last order where ``x`` is.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    # PyTorch's channels-last kernel for the CPU loses the variance where the mean is large.
    normal = F.group_norm(x.to(wide).contiguous(), groups, _cast(weight, wide), _cast(bias, wide), eps)
    out = (F.silu(normal) if silu else normal).to(x.dtype)
    channels_last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


def _cast(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if parameter is None else parameter.to(dtype)
