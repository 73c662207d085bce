"""Perceivers that make identity tokens of an image encoder's states, with the parameter names of published files.

IP-Adapter, its FaceID forms, InstantID and StoryMaker share them (Ye et al. 2023; Alayrac et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64
"""Channels of a head in all published files: their weights do not tell it."""


@dataclass(frozen=True, slots=True)
class PerceiverSizes:
    """``inputs`` is the width of the states that are read, ``outputs`` that of the tokens."""

    width: int
    inputs: int
    outputs: int
    heads: int
    depth: int = 4
    head_width: int = HEAD_WIDTH

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], prefix: str = "", head_width: int = HEAD_WIDTH) -> Self:
        """The sizes of the perceiver whose weights are below a prefix.

        Raises:
            KeyError: they are not a perceiver's.
        """
        width, inputs = weights[f"{prefix}proj_in.weight"].shape
        depth = 0
        while f"{prefix}layers.{depth}.0.to_q.weight" in weights:
            depth += 1
        heads = weights[f"{prefix}layers.0.0.to_q.weight"].shape[0] // head_width
        outputs = weights[f"{prefix}proj_out.weight"].shape[0]
        return cls(width, inputs, outputs, heads, depth, head_width)


class PerceiverAttention(nn.Module):
    """Queries look at states and at themselves."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self._heads = heads
        inner = heads * head_width
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        """[B, S, width] and [B, n, width] -> [B, n, width]."""
        queries = self.norm2(queries)
        keys, values = self.to_kv(torch.cat([self.norm1(states), queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self._heads, -1)).transpose(1, 2) for x in (self.to_q(queries), keys, values))
        attended: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return attended


class _Layers(nn.Module):
    """Queries gather what states say, layer by layer."""

    def __init__(self, sizes: PerceiverSizes) -> None:
        super().__init__()
        self.proj_in = nn.Linear(sizes.inputs, sizes.width)
        self.proj_out = nn.Linear(sizes.width, sizes.outputs)
        self.norm_out = nn.LayerNorm(sizes.outputs)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(sizes.width, sizes.heads, sizes.head_width), _feed_forward(sizes.width)])
            for _ in range(sizes.depth)
        )

    def gather(self, queries: Tensor, states: Tensor) -> Tensor:
        """[B, n, width] and [B, S, inputs] -> [B, n, outputs]."""
        states = self.proj_in(states)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            queries = queries + attention(states, queries)
            queries = queries + feed_forward(queries)
        tokens: Tensor = self.norm_out(self.proj_out(queries))
        return tokens


class Perceiver(_Layers):
    """The queries are given."""

    def forward(self, queries: Tensor, states: Tensor) -> Tensor:
        """[B, n, width] and [B, S, inputs] -> [B, n, outputs]."""
        return self.gather(queries, states)


class Resampler(_Layers):
    """The queries are learnt: that many tokens of states of any number."""

    def __init__(self, sizes: PerceiverSizes, queries: int) -> None:
        super().__init__(sizes)
        self.latents = nn.Parameter(torch.randn(1, queries, sizes.width) / sizes.width**0.5)

    def forward(self, states: Tensor) -> Tensor:
        """[B, S, inputs] -> [B, queries, outputs]."""
        return self.gather(self.latents.expand(states.shape[0], -1, -1), states)


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )
