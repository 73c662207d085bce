"""Character-Adapter on any IP-Adapter that reads whole characters: a stream for each part of a character, no training.

Ma et al. 2024 tell the idea; the rules here are our own. What a reference shows of each part (``parts``) goes through
the adapter's projection by itself. A part's stream acts where the maps of the words for the part say that it is, within
the character (``regions.part_shares``); parts that the prompt has no word for are one stream together, which acts on
what is left of the character.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from storyloom_model.identity.adapter import CharacterIdentity, Stream, StreamMaker
from storyloom_model.identity.features import Array, FeaturesError, IdentityFeatures
from storyloom_model.identity.parts import PARTS, Part, kept


class PartStreams(StreamMaker):
    """A stream for each part that the references show; several references of a part are tokens side by side.

    With a blend the references of each person are averaged before they are mixed, part by part; a part that only one
    of the two shows is that one's.

    Args:
        projection: B states [B, S, width] or embeddings [B, width] -> tokens [B, n, D].
        states: which of the two it reads.
        empty_states: see ``ReferenceTokens``.
    """

    by_parts = True
    empty_states: Tensor | None

    def __init__(self, projection: nn.Module, *, states: bool, empty_states: Tensor | None = None) -> None:
        super().__init__()
        self.projection = projection
        self._states = states
        self.register_buffer("empty_states", empty_states if states else None, persistent=False)

    def streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``."""
        return self._streams(cast, empty=False)

    def negative_streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``. Each part counts as an empty picture."""
        return self._streams(cast, empty=True)

    def _streams(self, cast: Mapping[str, CharacterIdentity], *, empty: bool) -> list[Stream]:
        made = []
        for name, character in cast.items():
            own = self._parts(name, character.features, character.keep, empty=empty)
            if character.blend is not None:
                other = self._parts(name, character.blend, character.keep, empty=empty)
                own = _mixed(own, other, character.blend_weight)
            made += [Stream(own[part].flatten(0, 1), name, character.scale, part=part) for part in PARTS if part in own]
        return made

    def _parts(self, name: str, features: IdentityFeatures, keep: frozenset[str], *, empty: bool) -> dict[str, Tensor]:
        """Tokens of the parts that are kept, [references, n, D] each."""
        shown: dict[str, list[Array]] = {}
        for reference in features.references:
            for part, seen in reference.parts.items():
                if kept(part, keep):
                    shown.setdefault(part, []).append(seen.states if self._states else seen.embedding)
        if not shown:
            raise FeaturesError(
                f"the references of {name} have none of the parts that this adapter takes over; add one that shows "
                "them, keep more, or encode again those that were encoded before the package had this adapter"
            )
        like = next(self.projection.parameters())
        tokens = {}
        for part, arrays in shown.items():
            inputs = torch.stack([torch.as_tensor(one, device=like.device, dtype=like.dtype) for one in arrays])
            if empty:
                nothing = torch.zeros_like(inputs) if self.empty_states is None else self.empty_states.to(inputs)
                inputs = nothing.expand_as(inputs)
            tokens[part] = self.projection(inputs)
        return tokens


def placed(streams: Sequence[Stream], said: Collection[Part]) -> list[Stream]:
    """The streams of one frame: parts that its prompt has words for, and for each character one of all its others.

    Args:
        streams: as a maker made them; those without a part stay what they are.
        said: the parts that the prompt has words for.
    """
    found = [one for one in streams if one.part is None or (one.owner, one.part) in said]
    rest: dict[str | None, list[Stream]] = {}
    for one in streams:
        if one.part is not None and (one.owner, one.part) not in said:
            rest.setdefault(one.owner, []).append(one)
    return found + [
        Stream(torch.cat([one.tokens for one in others]), owner, others[0].scale) for owner, others in rest.items()
    ]


def _mixed(own: Mapping[str, Tensor], other: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    means = [{part: tokens.mean(0, keepdim=True) for part, tokens in one.items()} for one in (own, other)]
    first, second = means
    both = {part: torch.lerp(first[part], second[part], weight) for part in first.keys() & second.keys()}
    return {**first, **second, **both}
