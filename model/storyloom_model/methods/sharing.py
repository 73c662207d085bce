"""What rows show and see in one UNet pass, as tensors that a captured graph may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

ALL = 1 << 32
"""Shown, of all positions."""
PREFIX = "method."
"""Of the inputs of a UNet call that ``Sharing`` is made of."""

TURNS = 3
"""In which rows take from each other's outputs."""

_WORD = ALL - 1


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """Story methods in a pass of R rows with L self-attention layers.

    Attributes:
        shown: int64 [R, L], how many of 2**32 equally likely positions a row shows in a layer.
        key: int64 [R], 32 bits that decide which ones.
        masked: bool [R, 1], whether only those in the foreground.
        earlier_masks: bool [R, 1], rows whose foreground is that of the step before; None: there are none.
        sees: bool [R, 1], False for rows that see only themselves; None: there are none.
        query_row: int64 [R], another row of the pass with the same latents and text, which sees nobody.
        query_weight: float [R, L], the part of each query that is that row's; None: nobody takes any.
        inject_weight: float [R, L], the part of each output of a layer that is taken from another row's; None: nobody
            takes any, and the two below are not there either.
        inject_source: int64 [R, N], from where each position takes it in layers of N positions, see ``injected``.
        inject_turn: int64 [R], see ``injected``.
    """

    shown: Tensor
    key: Tensor
    masked: Tensor
    earlier_masks: Tensor | None = None
    sees: Tensor | None = None
    query_row: Tensor | None = None
    query_weight: Tensor | None = None
    inject_weight: Tensor | None = None
    inject_source: Tensor | None = None
    inject_turn: Tensor | None = None
    _draws: dict[int, Tensor] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> Self | None:
        """From the inputs of a UNet call; None where no story has a method of its own."""
        own = {name.removeprefix(PREFIX): value for name, value in inputs.items() if name.startswith(PREFIX)}
        return cls(**own) if own else None

    def visible(self, layer: int, foreground: Tensor) -> Tensor:
        """The positions that rows show to others in a self-attention layer, bool [R, N].

        Args:
            layer: its place among the self-attention layers.
            foreground: bool [R, N].
        """
        positions = foreground.shape[1]
        if positions not in self._draws:
            self._draws[positions] = draws(self.key, positions)
        chosen = self._draws[positions] < self.shown[:, layer, None]
        return chosen & (foreground | ~self.masked)

    def queries(self, layer: int, q: Tensor) -> Tensor:
        """Queries [R, ...] -> those that the layer goes on with."""
        if self.query_weight is None or self.query_row is None:
            return q
        weight = self.query_weight[:, layer].to(q.dtype).reshape(-1, *[1] * (q.ndim - 1))
        return torch.where(weight > 0, weight * q[self.query_row] + (1 - weight) * q, q)

    def outputs(self, layer: int, out: Tensor) -> Tensor:
        """What a layer puts out, [R, N, C] -> what it goes on with."""
        if self.inject_weight is None or self.inject_source is None or self.inject_turn is None:
            return out
        if out.shape[1] != self.inject_source.shape[1]:
            return out
        return injected(out, self.inject_weight[:, layer], self.inject_source, self.inject_turn)

    def seen(self, shared: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The output of attention across frames [R, H, N, d], with that of plain attention for rows that see nobody."""
        if self.sees is None:
            return shared
        return torch.where(self.sees[..., None, None], shared, F.scaled_dot_product_attention(q, k, v))


def injected(out: Tensor, weight: Tensor, source: Tensor, turn: Tensor) -> Tensor:
    """Outputs of a layer with what is injected.

    Args:
        out: [R, N, C].
        weight: float [R], of what is injected; 0: nothing is.
        source: int64 [R, N], numbers of positions of all rows in one row; its own where a position takes nothing.
        turn: int64 [R], below ``TURNS``.
    """
    rows, positions, _ = out.shape
    own = torch.arange(rows * positions, device=out.device).view(rows, positions)
    taking = (source != own) & (weight > 0)[:, None]
    part = weight.to(out.dtype)[:, None, None]
    for now in range(TURNS):
        taken = out.flatten(0, 1)[source.flatten()].view_as(out)
        acts = taking & (turn == now)[:, None]
        out = torch.where(acts[..., None], part * taken + (1 - part) * out, out)
    return out


def draws(key: Tensor, positions: int) -> Tensor:
    """A number for each position of each row: int64 [R] keys of 32 bits -> int64 [R, positions], 0 to 2**32 - 1.

    Whole numbers alone, so that they are the same on every device. Each layer size has its own.
    """
    place = torch.arange(positions, device=key.device)
    return _mix((_mix(key ^ positions)[:, None] + place * 0x1E3779B1) & _WORD)


def _mix(value: Tensor) -> Tensor:
    """A bijection on 32 bits that flips half of them (hash-prospector; Wellons 2018). No product reaches 2**63."""
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _WORD
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _WORD
    return value ^ (value >> 15)
