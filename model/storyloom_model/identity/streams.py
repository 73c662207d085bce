"""Identity streams of the rows of a UNet pass, from lists of streams to the tensors that its layers take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_model.identity.adapter import LayerProjections, Stream
from storyloom_model.identity.parts import Part

EVERYWHERE = -1
"""Stands where the place of a stream's owner would: it acts in the whole picture."""


@dataclass(frozen=True, slots=True, eq=False)
class IdentityStreams:
    """Identity streams of the R rows of a pass. S tokens and C streams a row, as of the row that has most.

    ``keys_values`` are those of every cross-attention layer in the UNet's order, [R, S, width] each. ``ends`` is int32
    [R, C], one past the last token of each stream; ``scale`` is float32 [R, C]. ``owner`` is int64 [R, C], the place of
    the character in whose region the stream acts, or ``EVERYWHERE``. ``blocks``, to train with, is [R, B, S], non-zero
    where a token belongs to a block: the pass then keeps how much attention each block gets
    (``AttentionPass.identity_maps``).
    """

    keys_values: Sequence[tuple[Tensor, Tensor]]
    ends: Tensor
    scale: Tensor
    owner: Tensor
    blocks: Tensor | None = None

    def rows(self, index: Tensor) -> IdentityStreams:
        """Some rows, any number of times each, int64 [n]; without blocks."""
        return IdentityStreams(
            tuple((keys[index], values[index]) for keys, values in self.keys_values),
            self.ends[index],
            self.scale[index],
            self.owner[index],
        )

    def none(self, rows: int) -> IdentityStreams:
        """As many rows in which nobody has a token, for the same layers."""
        return IdentityStreams(
            tuple((_no_tokens(keys, rows), _no_tokens(values, rows)) for keys, values in self.keys_values),
            self.ends.new_zeros(rows, 1),
            self.scale.new_zeros(rows, 1),
            self.owner.new_full((rows, 1), EVERYWHERE),
        )

    def padded(self, tokens: int, streams: int) -> IdentityStreams:
        """With room for at least so many tokens and streams in each row, which nothing is in; without blocks."""
        room = (0, 0, 0, max(tokens - self.tokens, 0))
        more = max(streams - self.ends.shape[1], 0)
        return IdentityStreams(
            tuple((F.pad(keys, room), F.pad(values, room)) for keys, values in self.keys_values),
            # A stream that ends where the one before it does has no tokens.
            torch.cat([self.ends, self.ends[:, -1:].expand(-1, more)], dim=1),
            F.pad(self.scale, (0, more)),
            F.pad(self.owner, (0, more), value=EVERYWHERE),
        )

    @property
    def tokens(self) -> int:
        """S."""
        return self.keys_values[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; keys and values are nearly all of them."""
        kept = [one for pair in self.keys_values for one in pair]
        return sum(one.nbytes for one in (*kept, self.ends, self.scale, self.owner))


@dataclass(frozen=True, slots=True, eq=False)
class PackedStreams:
    """Streams of R rows before any layer has seen them: ``tokens`` [R, S, D]; the rest as of ``IdentityStreams``."""

    tokens: Tensor
    ends: Tensor
    scale: Tensor
    owner: Tensor

    def project(self, layers: Sequence[LayerProjections], blocks: Tensor | None = None) -> IdentityStreams:
        """The keys and values that the layers make of the tokens; differentiable in both."""
        keys_values = tuple((F.linear(self.tokens, one.to_k), F.linear(self.tokens, one.to_v)) for one in layers)
        return IdentityStreams(keys_values, self.ends, self.scale, self.owner, blocks)


def pack_streams(
    rows: Sequence[Sequence[Stream]], characters: Sequence[str | Part], *, scale: float = 1.0
) -> PackedStreams:
    """Puts the streams of rows together; differentiable in the tokens.

    Args:
        rows: the streams of each row, any number of any length, none included; at least one row has one.
        characters: names in the order of the pass's token mask, and parts of theirs that have a place of their own.
        scale: multiplies that of every stream.

    Raises:
        ValueError: no row has a stream, or one belongs to nobody among the characters.
    """
    filled = [streams for streams in rows if streams]
    if not filled:
        raise ValueError("there is no stream in any row; leave identities out of the pass")
    places: dict[Any, int] = {name: place for place, name in enumerate(characters)} | {None: EVERYWHERE}
    strangers = {_place(one) for streams in filled for one in streams} - places.keys()
    if strangers:
        raise ValueError(f"streams belong to {sorted(map(str, strangers))}, who are not among {list(characters)}")
    like = filled[0][0].tokens
    longest, count = max(map(_length, filled)), max(map(len, filled))
    tokens, ends, scales, owners = [], [], [], []
    for streams in rows:
        own = torch.cat([like.new_zeros(0, like.shape[1]), *(one.tokens for one in streams)])
        tokens.append(F.pad(own, (0, 0, 0, longest - len(own))))
        missing = count - len(streams)
        reached = list(accumulate((len(one.tokens) for one in streams), initial=0))
        # A stream that ends where the one before it does has no tokens.
        ends.append(reached[1:] + [len(own)] * missing)
        scales.append([scale * one.scale for one in streams] + [0.0] * missing)
        owners.append([places[_place(one)] for one in streams] + [EVERYWHERE] * missing)
    return PackedStreams(
        torch.stack(tokens),
        torch.tensor(ends, dtype=torch.int32, device=like.device),
        torch.tensor(scales, device=like.device),
        torch.tensor(owners, device=like.device),
    )


def join_streams(parts: Sequence[IdentityStreams]) -> IdentityStreams:
    """The rows of all parts, one after the other, with room for as much as any has; without blocks."""
    if len(parts) == 1:
        return parts[0]
    tokens = max(part.tokens for part in parts)
    streams = max(part.ends.shape[1] for part in parts)
    wide = [part.padded(tokens, streams) for part in parts]
    layers = zip(*(part.keys_values for part in wide), strict=True)
    return IdentityStreams(
        tuple((torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer])) for layer in layers),
        torch.cat([part.ends for part in wide]),
        torch.cat([part.scale for part in wide]),
        torch.cat([part.owner for part in wide]),
    )


def _no_tokens(values: Tensor, rows: int) -> Tensor:
    return values.new_zeros(rows, 0, values.shape[2])


def _place(stream: Stream) -> Any:
    return stream.owner if stream.part is None else (stream.owner, stream.part)


def _length(streams: Sequence[Stream]) -> int:
    return sum(len(one.tokens) for one in streams)
