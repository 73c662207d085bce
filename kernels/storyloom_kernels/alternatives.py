"""The ops by other libraries: to compare with, and for devices without Triton. Arguments as of `reference`.

R rows, H heads, N positions, d head dimension.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels.bank import compact
from storyloom_kernels.layout import GroupLayout
from storyloom_kernels.reference import attention_maps, identity_streams


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layout: GroupLayout) -> Tensor:
    """`scaled_dot_product_attention` with a dense mask: bool [F * N, F * N] for each group of F rows."""
    parts = []
    for rows in layout.slices():
        frames, heads, positions, width = q[rows].shape
        flat_q, flat_k, flat_v = (
            x[rows].transpose(0, 1).reshape(1, heads, frames * positions, width) for x in (q, k, v)
        )
        own = torch.arange(frames, device=q.device).repeat_interleave(positions)
        visible = (own[:, None] == own) | mask[rows].flatten()
        out = F.scaled_dot_product_attention(flat_q, flat_k, flat_v, attn_mask=visible)
        parts.append(out.view(heads, frames, positions, width).transpose(0, 1))
    return torch.cat(parts)


def flex_block_mask(mask: Tensor, layout: GroupLayout, block: int) -> tuple[Any, Tensor]:
    """FlexAttention's block mask, from the bank's prefix sums alone, and the bank's places.

    The keys are all R * N own positions, and after them R * N slots of the bank. No host read, and nothing of the size
    of the attention's matrix.

    Args:
        mask: bool [R, N].
        block: queries and keys of a block; divides N.

    Returns:
        A BlockMask of R * N queries and 2 * R * N keys, and the places int64 [R * N] of the slots.
    """
    from torch.nn.attention.flex_attention import BlockMask

    rows, positions = mask.shape
    index, offsets = compact(mask)
    bounds = layout.bounds(mask.device).long()
    begin, end = offsets[bounds[:, 0]].long(), offsets[bounds[:, 1]].long()
    own_begin, own_end = offsets[:-1].long(), offsets[1:].long()
    here = rows * positions

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row, slot = query // positions, key - here
        in_bank = (slot >= begin[row]) & (slot < end[row]) & ((slot < own_begin[row]) | (slot >= own_end[row]))
        return torch.where(key < here, key // positions == row, in_bank)

    blocks = here // block
    row = (torch.arange(blocks, device=mask.device) * block // positions)[:, None]
    first = torch.arange(blocks, device=mask.device) * block  # of the block's slots
    low = torch.stack((begin[row], own_end[row]))
    high = torch.stack((own_begin[row], end[row]))
    shared = (torch.minimum(high, first + block) - torch.maximum(low, first)).clamp(min=0).sum(0)
    full = torch.cat((row == row.T, shared == block), dim=1)
    partial = torch.cat((torch.zeros_like(row == row.T), (shared > 0) & (shared < block)), dim=1)

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return chosen.sum(1).to(torch.int32)[None, None], order.to(torch.int32)[None, None]

    made = BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), BLOCK_SIZE=block, mask_mod=sees, seq_lengths=(here, 2 * here)
    )
    return made, index.long()


def flex_keys(values: Tensor, places: Tensor) -> Tensor:
    """Own values and then those of the bank's slots: [R, H, N, d] -> [1, H, 2 * R * N, d]."""
    flat = values.transpose(0, 1).flatten(1, 2)
    return torch.cat((flat, flat[:, places]), dim=1)[None]


def flex_block(positions: int) -> int:
    """The largest block that FlexAttention can take for layers of N positions.

    Raises:
        ValueError: N is not a multiple of 16.
    """
    block = next((size for size in (128, 64, 32, 16) if positions % size == 0), None)
    if block is None:
        raise ValueError(f"FlexAttention takes layers whose positions are a multiple of 16; got {positions}")
    return block


@cache
def _flex_attention(*, compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def flex_with(q: Tensor, k: Tensor, v: Tensor, block_mask: Any, places: Tensor) -> Tensor:
    """FlexAttention with what `flex_block_mask` made; compiled where there is a GPU."""
    rows, heads, positions, width = q.shape
    run = _flex_attention(compiled=q.is_cuda)
    block = block_mask.BLOCK_SIZE[0]
    # The tiles of its forward, up to 128 by default, have to divide the blocks.
    options = {"fwd_BLOCK_M": block, "fwd_BLOCK_N": block} if block < 128 else None
    out: Tensor = run(
        q.transpose(0, 1).reshape(1, heads, rows * positions, width), flex_keys(k, places), flex_keys(v, places),
        block_mask=block_mask, kernel_options=options,
    )  # fmt: skip
    return out.view(heads, rows, positions, width).transpose(0, 1)


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layout: GroupLayout) -> Tensor:
    """FlexAttention, with its block mask built in the call.

    Raises:
        ValueError: N is not a multiple of 16.
    """
    return flex_with(q, k, v, *flex_block_mask(mask, layout, flex_block(q.shape[2])))


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, layout: GroupLayout) -> Tensor:
    """xFormers' memory-efficient attention over materialised keys. Reads the bank's lengths on the host."""
    from xformers import ops
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    rows, heads, positions, width = q.shape
    pieces_k, pieces_v, lengths = [], [], []
    tokens_k, tokens_v = k.transpose(1, 2), v.transpose(1, 2)  # [R, N, H, d]
    for piece in layout.slices():
        for row in range(piece.start, piece.stop):
            seen = mask[piece].clone()
            seen[row - piece.start] = False
            others_k, others_v = tokens_k[piece][seen], tokens_v[piece][seen]
            pieces_k += [tokens_k[row], others_k]
            pieces_v += [tokens_v[row], others_v]
            lengths.append(positions + len(others_k))
    bias = BlockDiagonalMask.from_seqlens([positions] * rows, lengths)
    queries = q.transpose(1, 2).reshape(1, rows * positions, heads, width)
    out: Tensor = ops.memory_efficient_attention(
        queries, torch.cat(pieces_k)[None], torch.cat(pieces_v)[None], attn_bias=bias
    )
    return out.view(rows, positions, heads, width).transpose(1, 2)


def sdpa_identity(
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
    """K2 unfused: `scaled_dot_product_attention` for the text and for each stream, and `attention_maps`."""
    out = F.scaled_dot_product_attention(q, k, v)
    precise = torch.promote_types(q.dtype, torch.float32)
    for seen, weight in identity_streams(id_k.shape[2], stream_ends, scale, region, precise):
        out = out + weight.to(q.dtype) * F.scaled_dot_product_attention(q, id_k, id_v, attn_mask=seen)
    if token_mask is None:
        token_mask = k.new_zeros(k.shape[0], 0, k.shape[2])
    return out, attention_maps(q, k, token_mask)
