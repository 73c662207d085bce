"""StoryMaker: the Positional-aware Perceiver Resampler (Zhou et al. 2024), and the rules that make streams with it.

Parameter names are those of the published file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from storyloom_model.identity.adapter import CharacterIdentity, Stream, StreamMaker
from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.identity.perceiver import HEAD_WIDTH, Perceiver, PerceiverSizes, Resampler

FACE = "face"
APPEARANCE = frozenset({"hair", "clothes", "body"})
"""What the tokens of the character crop say, all in one: they cannot be kept one without another."""


@dataclass(frozen=True, slots=True)
class StoryMakerSizes:
    """Those of the published SDXL adapter by default.

    ``width`` is that of the tokens, hence of the UNet's text; ``states`` that of the image encoder's hidden states.
    ``places`` is how many characters a frame can have. Without ``background`` there are tokens of characters alone (the
    paper's ablation).
    """

    width: int = 2048
    face: int = 512
    states: int = 1280
    face_tokens: int = 4
    character_tokens: int = 16
    character_width: int = 1280
    character_heads: int = 20
    places: int = 3
    depth: int = 4
    head_width: int = HEAD_WIDTH
    background: bool = True

    @property
    def tokens(self) -> int:
        """Of a character, and of the background."""
        return self.face_tokens + self.character_tokens

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], head_width: int = HEAD_WIDTH) -> Self:
        """The sizes of a resampler with these weights.

        Raises:
            KeyError: they are not a StoryMaker resampler's.
        """
        width = len(weights["norm.weight"])
        character = PerceiverSizes.of(weights, "resample.", head_width)
        return cls(
            width=width,
            face=weights["proj.0.weight"].shape[1],
            states=character.inputs,
            face_tokens=len(weights["proj.2.weight"]) // width,
            character_tokens=weights["resample.latents"].shape[1],
            character_width=character.width,
            character_heads=character.heads,
            places=len(weights["pos_embed"]),
            depth=character.depth,
            head_width=head_width,
        )


class StoryMakerResampler(nn.Module):
    """Tokens of a character's face, of its whole appearance, and of the background. K characters, D the tokens' width.

    A fresh one adds nothing at the end: ``proj_out`` starts at zero, positions and background too.
    """

    def __init__(self, sizes: StoryMakerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.proj = nn.Sequential(
            nn.Linear(sizes.face, 2 * sizes.face), nn.GELU(), nn.Linear(2 * sizes.face, sizes.face_tokens * width)
        )
        self.norm = nn.LayerNorm(width)
        self.pos_embed = nn.Parameter(torch.zeros(sizes.places, sizes.tokens, width))
        self.bg_embed = nn.Parameter(torch.zeros(1, sizes.tokens, width))
        self.proj_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        face = PerceiverSizes(
            width, sizes.states, width, max(width // sizes.head_width, 1), sizes.depth, sizes.head_width
        )
        character = PerceiverSizes(
            sizes.character_width, sizes.states, width, sizes.character_heads, sizes.depth, sizes.head_width
        )
        self.perceiver_resampler = Perceiver(face)
        self.resample = Resampler(character, sizes.character_tokens)

    def face_tokens(self, face: Tensor, states: Tensor) -> Tensor:
        """Embeddings [B, face] and states of the face crop [B, S, states] -> [B, face_tokens, D]."""
        coarse = self.norm(self.proj(face).unflatten(-1, (self.sizes.face_tokens, -1)))
        tokens: Tensor = coarse + self.perceiver_resampler(coarse, states)
        return tokens

    def character_tokens(self, states: Tensor) -> Tensor:
        """States of the character crop [B, S, states] -> [B, character_tokens, D]."""
        tokens: Tensor = self.resample(states)
        return tokens

    def place(self, characters: Tensor) -> Tensor:
        """The background's tokens, then each character's at its place: [..., K, tokens, D] -> [..., (K+1)*tokens, D];
        K*tokens where there is no background.

        Args:
            characters: tokens of the face, then of the character crop; at most ``places`` characters.
        """
        placed: Tensor = characters + self.pos_embed[: characters.shape[-3]]
        placed = placed + self.norm_out(self.proj_out(placed))
        if not self.sizes.background:
            return placed.flatten(-3, -2)
        background = self.bg_embed.expand(*placed.shape[:-3], 1, -1, -1)
        return torch.cat([background, placed], dim=-3).flatten(-3, -2)

    def forward(self, face: Tensor, face_states: Tensor, character_states: Tensor) -> Tensor:
        """All tokens of one frame with K characters: [K, face], [K, S, states] twice -> see ``place``."""
        characters = [self.face_tokens(face, face_states), self.character_tokens(character_states)]
        return self.place(torch.cat(characters, dim=1))


class StoryMakerStreams(StreamMaker):
    """One stream for all of a frame: background and characters share a softmax, and no region is needed.

    Of several references of a character the tokens are averaged. A reference with the role "clothes" takes the place
    of the character crop. ``keep`` without "face" zeroes the face's tokens; with the face alone, those of the
    character crop, which leaves style and clothes to the prompt. A frame's stream has one scale: the characters' mean.
    """

    def __init__(self, resampler: StoryMakerResampler) -> None:
        super().__init__()
        self.resampler = resampler

    @property
    def config(self) -> dict[str, Any]:
        """See ``StreamMaker``: the resampler's sizes."""
        return asdict(self.resampler.sizes)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """See ``StreamMaker``."""
        return cls(StoryMakerResampler(StoryMakerSizes(**config)))

    def streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``."""
        self._check(cast)
        characters = [self._tokens(name, character) for name, character in cast.items()]
        return self._stream(torch.stack(characters), cast) if characters else []

    def negative_streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """See ``StreamMaker``. Everything but the background is made of zeros."""
        self._check(cast)
        if not cast:
            return []
        sizes, like = self.resampler.sizes, self.resampler.bg_embed
        face, states = like.new_zeros(1, sizes.face), like.new_zeros(1, _state_count(cast), sizes.states)
        tokens = torch.cat([self.resampler.face_tokens(face, states), self.resampler.character_tokens(states)], dim=1)
        return self._stream(tokens.expand(len(cast), -1, -1), cast)

    def _stream(self, characters: Tensor, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        scale = sum(character.scale for character in cast.values()) / len(cast)
        return [Stream(self.resampler.place(characters), None, scale)]

    def _check(self, cast: Mapping[str, CharacterIdentity]) -> None:
        places = self.resampler.sizes.places
        if len(cast) > places:
            raise FeaturesError(
                f"{', '.join(cast)} are in one frame, and this adapter tells at most {places} characters apart; leave "
                "the references of one out, or split the frame"
            )

    def _tokens(self, name: str, character: CharacterIdentity) -> Tensor:
        """[tokens, D], before they get a place."""
        own = self._tokens_of(name, character.features, character.keep)
        if character.blend is None:
            return own
        return torch.lerp(own, self._tokens_of(name, character.blend, character.keep), character.blend_weight)

    def _tokens_of(self, name: str, features: IdentityFeatures, keep: frozenset[str]) -> Tensor:
        sizes, like = self.resampler.sizes, self.resampler.bg_embed
        face = like.new_zeros(sizes.face_tokens, sizes.width)
        appearance = like.new_zeros(sizes.character_tokens, sizes.width)
        if not keep or FACE in keep:
            face = self._face(name, features)
        if not keep or keep & APPEARANCE:
            appearance = self._appearance(name, features)
        return torch.cat([face, appearance])

    def _face(self, name: str, features: IdentityFeatures) -> Tensor:
        shown = [one for one in features.references if one.face is not None and one.face_states is not None]
        if not shown:
            raise FeaturesError(
                f"no reference of {name} shows a face; add one that does, or keep only hair, clothes or body"
            )
        faces = self._batch(one.face for one in shown)
        return self.resampler.face_tokens(faces, self._batch(one.face_states for one in shown)).mean(0)

    def _appearance(self, name: str, features: IdentityFeatures) -> Tensor:
        shown = [one for one in features.references if one.character_states is not None]
        shown = [one for one in shown if one.role == "clothes"] or shown
        if not shown:
            raise FeaturesError(f"no reference of {name} shows more than the face; add one that does, or keep the face")
        return self.resampler.character_tokens(self._batch(one.character_states for one in shown)).mean(0)

    def _batch(self, arrays: Iterable[Any]) -> Tensor:
        like = self.resampler.bg_embed
        return torch.stack([torch.as_tensor(array, device=like.device, dtype=like.dtype) for array in arrays])


def _state_count(cast: Mapping[str, CharacterIdentity]) -> int:
    """How many states the image encoder gives of a picture; so many zeros weigh as much in the softmax."""
    references = (one for character in cast.values() for one in character.features.references)
    found = (states for one in references for states in (one.character_states, one.face_states))
    return next((len(states) for states in found if states is not None), 1)
