"""Storynizor's ID-Injector: a face becomes a few tokens, one stream for each character."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from storyloom_model.identity.adapter import CharacterIdentity, Stream, StreamMaker
from storyloom_model.identity.features import Array, FeaturesError, IdentityFeatures
from storyloom_model.identity.perceiver import HEAD_WIDTH, Perceiver, PerceiverSizes


@dataclass(frozen=True, slots=True)
class InjectorSizes:
    """Sizes of an ID-Injector.

    ``dim`` is the width of the text; ``state_dim`` that of the image encoder's states. With ``stacked`` the tokens of
    all references of a character lie in its stream side by side (the paper's ablation); without, they are averaged.
    """

    state_dim: int
    dim: int = 256
    tokens: int = 4
    face_dim: int = 512
    depth: int = 2
    heads: int = 4
    head_dim: int = HEAD_WIDTH
    stacked: bool = False


class StorynizorInjector(StreamMaker):
    """Tokens of a face embedding, refined by the image encoder's states of the face crop (equation 9 of the paper).

    Built as FaceID-plusv2 of IP-Adapter is. Each character is a stream of its own.
    """

    def __init__(self, sizes: InjectorSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.proj = nn.Sequential(
            nn.Linear(sizes.face_dim, 2 * sizes.face_dim),
            nn.GELU(),
            nn.Linear(2 * sizes.face_dim, sizes.tokens * sizes.dim),
        )
        self.norm = nn.LayerNorm(sizes.dim)
        self.perceiver_resampler = Perceiver(
            PerceiverSizes(sizes.dim, sizes.state_dim, sizes.dim, sizes.heads, sizes.depth, sizes.head_dim)
        )

    @property
    def config(self) -> dict[str, Any]:
        """See ``StreamMaker``."""
        return asdict(self.sizes)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """See ``StreamMaker``."""
        return cls(InjectorSizes(**config))

    def forward(self, face: Tensor, states: Tensor) -> Tensor:
        """Embeddings [B, face_dim] and states of face crops [B, T, state_dim] -> tokens [B, tokens, dim]."""
        first = self.norm(self.proj(face).unflatten(-1, (self.sizes.tokens, self.sizes.dim)))
        refined: Tensor = first + self.perceiver_resampler(first, states)
        return refined

    def streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``."""
        return [
            Stream(self._tokens(name, identity, zeroed=False), name, identity.scale) for name, identity in cast.items()
        ]

    def negative_streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``. Made of zeros, for as many references."""
        return [
            Stream(self._tokens(name, identity, zeroed=True), name, identity.scale) for name, identity in cast.items()
        ]

    def _tokens(self, name: str, identity: CharacterIdentity, *, zeroed: bool) -> Tensor:
        if identity.keep and "face" not in identity.keep:
            raise FeaturesError(
                f"character {name} is to keep {', '.join(sorted(identity.keep))}, but this adapter carries the face "
                "alone; name the face too or choose another identity adapter"
            )
        own = self._of_references(name, identity.features, zeroed=zeroed)
        if identity.blend is None:
            return own
        other = self._of_references(name, identity.blend, zeroed=zeroed)
        # Stacked streams of two characters may differ in length; their means do not.
        if len(own) != len(other):
            own, other = (self._mean(tokens) for tokens in (own, other))
        return torch.lerp(own, other, identity.blend_weight)

    def _of_references(self, name: str, features: IdentityFeatures, *, zeroed: bool) -> Tensor:
        """[tokens, dim], or [references * tokens, dim] when stacked."""
        seen = [(r.face, r.face_states) for r in features.references if r.role == "character"]
        pairs = [(face, states) for face, states in seen if face is not None and states is not None]
        if not pairs:
            raise FeaturesError(f"no reference of character {name} shows a face; give a picture that does")
        weight = next(self.parameters())
        face, states = (_batch(arrays, weight) for arrays in zip(*pairs, strict=True))
        if zeroed:
            face, states = torch.zeros_like(face), torch.zeros_like(states)
        tokens = self(face, states).flatten(0, 1)
        return tokens if self.sizes.stacked else self._mean(tokens)

    def _mean(self, tokens: Tensor) -> Tensor:
        """[references * tokens, dim] -> [tokens, dim]."""
        return tokens.view(-1, self.sizes.tokens, self.sizes.dim).mean(0)


def _batch(arrays: tuple[Array, ...], like: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(array, np.float32) for array in arrays])).to(like)
