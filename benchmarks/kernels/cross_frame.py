"""K1, twice: from the map to the output, and the attention alone.

From the map to the output counts threshold, bank or mask, and attention; FlexAttention is given its block mask, which
only has to gather the keys. Alone counts the attention with everything before it made: the bank for K1, and for Flash
attention of variable lengths each frame's keys, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.records import FORWARD, PASSES, Case, Record, results, run_pass
from benchmarks.kernels.shapes import FOREGROUND, Layer, self_attention, useful_flops
from storyloom_kernels import GroupLayout, Implementation, cross_frame_attention, foreground, union
from storyloom_kernels.alternatives import flex_block, flex_block_mask, flex_with
from storyloom_kernels.bank import compact
from storyloom_kernels.tuning import architecture, tiles

BACKWARD_SHARE = 2.5
"""Operations of a backward for each of the forward: five products for two."""


def cases(layers: tuple[Layer, ...], frames: tuple[int, ...], device: torch.device, repeats: int) -> Iterator[Case]:
    for layer in layers:
        for count in frames:
            for mode in PASSES:
                facts = partial(_facts, layer, count, mode, device, repeats)
                about = {"width": layer.width, "frames": count}
                yield Case("K1", f"{layer.label} F={count}", mode, about, facts)


def _facts(layer: Layer, frames: int, mode: str, device: torch.device, repeats: int) -> Record:
    torch.compiler.reset()  # so that FlexAttention, compiled for each shape, never reaches the limit of its variants
    layout = GroupLayout((frames,))
    *qkv, maps = self_attention(layer, frames, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    inputs, d_out = (qkv[0], qkv[1], qkv[2]), torch.randn_like(qkv[0])
    mask = union(foreground(maps, "fixed", 1 - FOREGROUND, implementation="reference"))
    names: tuple[Implementation, ...] = ("triton", "sdpa", "xformers")
    calls: dict[str, Callable[[], Any]] = {
        name: run_pass(mode, partial(_from_map, maps=maps, layout=layout, implementation=name), inputs, (d_out,))
        for name in names
    }
    block_mask, places = flex_block_mask(mask, layout, flex_block(layer.positions))
    prebuilt = partial(flex_with, block_mask=block_mask, places=places)
    calls["flex"] = run_pass(mode, prebuilt, inputs, (d_out,))
    calls["triton alone"] = _kernels_alone(mode, inputs, d_out, mask, layout)
    calls["varlen alone"] = _varlen_alone(mode, inputs, d_out, mask, layout)
    flops = useful_flops(layer, mask, layout)
    done = flops if mode == FORWARD else (1 + BACKWARD_SHARE) * flops
    return {"flops": done, "results": results(calls, device, repeats)}


def _from_map(
    q: Tensor, k: Tensor, v: Tensor, *, maps: Tensor, layout: GroupLayout, implementation: Implementation
) -> Tensor:
    rule: Implementation = "triton" if implementation == "triton" else "reference"
    mask = union(foreground(maps, "fixed", 1 - FOREGROUND, implementation=rule))
    return cross_frame_attention(q, k, v, mask, layout, implementation=implementation)


def _kernels_alone(
    mode: str, qkv: tuple[Tensor, Tensor, Tensor], d_out: Tensor, mask: Tensor, layout: GroupLayout
) -> Callable[[], Any]:
    from storyloom_kernels.fused import cross_frame

    q = qkv[0]
    bank, bounds = compact(mask), layout.bounds(q.device)

    def chosen(kernel: str) -> Any:
        return tiles(f"cross_frame_{kernel}", architecture(q.device), q.shape[3], q.shape[2])

    def run() -> Any:
        out, lse = cross_frame.forward(*qkv, *bank, bounds, chosen("forward"))
        if mode == FORWARD:
            return out
        of_queries, of_keys = chosen("query_gradient"), chosen("key_gradient")
        return cross_frame.backward(d_out, *qkv, out, lse, *bank, bounds, of_queries, of_keys)

    return run


def _varlen_alone(
    mode: str, qkv: tuple[Tensor, Tensor, Tensor], d_out: Tensor, mask: Tensor, layout: GroupLayout
) -> Callable[[], Any]:
    """Flash attention of variable lengths (torch.nn.attention.varlen), keys and values materialised for each frame."""
    rows, heads, positions, width = qkv[0].shape
    places, lengths = [], [0]
    for piece in layout.slices():
        for row in range(piece.start, piece.stop):
            seen = mask[piece].clone()
            seen[row - piece.start] = True
            places.append(seen.flatten().nonzero()[:, 0] + piece.start * positions)
            lengths.append(lengths[-1] + len(places[-1]))
    flat_q, flat_k, flat_v, flat_d = (x.transpose(1, 2).reshape(-1, heads, width) for x in (*qkv, d_out))
    chosen = torch.cat(places)
    ends_q = torch.arange(rows + 1, device=mask.device, dtype=torch.int32) * positions
    ends_k = torch.tensor(lengths, device=mask.device, dtype=torch.int32)
    longest = max(end - begin for begin, end in pairwise(lengths))

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Any:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, ends_q, ends_k, positions, longest)

    return run_pass(mode, forward, (flat_q, flat_k[chosen], flat_v[chosen]), (flat_d,))
