"""K2 with two identity streams of 16 tokens and the maps of two characters, against the unfused sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.records import FORWARD, PASSES, Case, Record, number_of_bytes, results, run_pass
from benchmarks.kernels.shapes import Layer
from storyloom_kernels import Implementation, identity_cross_attention

TOKENS, STREAM_TOKENS = 77, 16


def cases(layers: tuple[Layer, ...], rows: int, device: torch.device, repeats: int) -> Iterator[Case]:
    for layer in layers:
        for mode in PASSES:
            facts = partial(_facts, layer, rows, mode, device, repeats)
            yield Case("K2", f"{layer.label} rows={rows}", mode, {}, facts)


def _facts(layer: Layer, rows: int, mode: str, device: torch.device, repeats: int) -> Record:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def draw(length: int) -> Tensor:
        shape = (rows, length, layer.heads, layer.width)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).transpose(1, 2)

    ends = torch.tensor([[STREAM_TOKENS, 2 * STREAM_TOKENS]] * rows, dtype=torch.int32, device=device)
    marks = torch.zeros(rows, 2, TOKENS, dtype=torch.bool, device=device)
    marks[:, 0, 2:9], marks[:, 1, 12:20] = True, True
    lengths = (layer.positions, TOKENS, TOKENS, 2 * STREAM_TOKENS, 2 * STREAM_TOKENS)
    scale = torch.ones(rows, 2, device=device)
    region = torch.rand(rows, 2, layer.positions, generator=generator, device=device)
    inputs = (*(draw(length) for length in lengths), scale, region)
    upstream = (draw(layer.positions), torch.rand_like(region))  # as large as the output and the maps

    def attend(
        q: Tensor, k: Tensor, v: Tensor, id_k: Tensor, id_v: Tensor, scale: Tensor, region: Tensor,
        *, implementation: Implementation,
    ) -> Any:  # fmt: skip
        return identity_cross_attention(
            q, k, v, id_k, id_v, ends, scale, region, marks, implementation=implementation
        )  # fmt: skip

    names: tuple[Implementation, ...] = ("triton", "sdpa")
    calls: dict[str, Callable[[], Any]] = {
        name: run_pass(mode, partial(attend, implementation=name), inputs, upstream) for name in names
    }
    read, written = number_of_bytes(*inputs, ends, marks), number_of_bytes(*upstream)
    # A backward reads all of that again and the gradients of the results, and writes those of the inputs.
    moved = read + written + (0 if mode == FORWARD else read + written + number_of_bytes(*inputs))
    return {"bytes": moved, "results": results(calls, device, repeats)}
