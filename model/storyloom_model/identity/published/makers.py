"""Streams of adapters that make some tokens of each reference: one stream per character."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from storyloom_model.identity.adapter import CharacterIdentity, Stream, StreamMaker
from storyloom_model.identity.features import FeaturesError, IdentityFeatures

_FACE, _CHARACTER = "face", "character"


class ReferenceTokens(StreamMaker):
    """A projection makes n tokens of each reference; those of one character's references are side by side.

    ``keep`` of the face alone reads the face crop where else the character crop is read; an adapter that reads faces
    refuses to keep only other things. With a blend the references of each are averaged before they are mixed.

    Args:
        projection: takes ``reads`` of B references, in this order, and gives [B, n, D].
        reads: names of fields of ``ReferenceFeatures``.
        empty_states: what the image encoder says of an empty picture, [S, width], for the negative prompt; None: zeros.
        face_length: the length of face embeddings that the projection knows.
    """

    empty_states: Tensor | None

    def __init__(
        self,
        projection: nn.Module,
        reads: tuple[str, ...],
        empty_states: Tensor | None = None,
        face_length: float = 1.0,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.reads = reads
        """Names of fields of ``ReferenceFeatures``, in the order of the projection's inputs."""
        self._face_length = face_length
        self.register_buffer("empty_states", empty_states, persistent=False)

    def streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``."""
        return [Stream(self._tokens(name, one), name, one.scale) for name, one in cast.items()]

    def negative_streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``. Each reference counts as an empty picture without a face."""
        return [Stream(self._empty_tokens(name, one), name, one.scale) for name, one in cast.items()]

    def _tokens(self, name: str, character: CharacterIdentity) -> Tensor:
        own: Tensor = self.projection(*self._inputs(name, character.features, character.keep))
        if character.blend is None:
            return own.flatten(0, 1)
        other: Tensor = self.projection(*self._inputs(name, character.blend, character.keep))
        return torch.lerp(own.mean(0), other.mean(0), character.blend_weight)

    def _empty_tokens(self, name: str, character: CharacterIdentity) -> Tensor:
        inputs = self._inputs(name, character.features, character.keep)
        references = len(inputs[0]) if character.blend is None else 1
        empty = [torch.zeros_like(one[:1]) for one in inputs]
        if self.empty_states is not None:
            states = self.empty_states.to(empty[0])[None]
            empty = [states if field.endswith("_states") else one for field, one in zip(self.reads, empty, strict=True)]
        tokens: Tensor = self.projection(*empty)
        return tokens.expand(references, -1, -1).flatten(0, 1)

    def _inputs(self, name: str, features: IdentityFeatures, keep: frozenset[str]) -> list[Tensor]:
        """What the projection reads of all references that show it, [B, ...] each."""
        fields = self._fields(name, keep)
        values = [[getattr(reference, field) for field in fields] for reference in features.references]
        shown = [value for value in values if all(part is not None for part in value)]
        if not shown:
            what = "the face" if fields[0].startswith(_FACE) else "the whole character"
            raise FeaturesError(f"no reference of {name} shows {what}, which this adapter needs; add one that does")
        like = next(self.projection.parameters())
        inputs = [
            torch.stack([torch.as_tensor(part, device=like.device, dtype=like.dtype) for part in column])
            for column in zip(*shown, strict=True)
        ]
        return [one * self._face_length if field == "face" else one for field, one in zip(fields, inputs, strict=True)]

    def _fields(self, name: str, keep: frozenset[str]) -> tuple[str, ...]:
        faces_only = all(field.startswith(_FACE) for field in self.reads)
        if faces_only and keep and _FACE not in keep:
            raise FeaturesError(
                f"{name} keeps {', '.join(sorted(keep))}, and this adapter takes over nothing but the face; keep face, "
                "or choose another identity adapter"
            )
        if keep == {_FACE}:
            return tuple(field.replace(_CHARACTER, _FACE) for field in self.reads)
        return self.reads
