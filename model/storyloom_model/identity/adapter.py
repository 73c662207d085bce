"""What an identity adapter is to the engine: a maker of streams, and the keys and values that layers make of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from storyloom_model.identity.features import IdentityFeatures


@dataclass(frozen=True, slots=True, eq=False)
class CharacterIdentity:
    """One character's features and what a story wants of them.

    ``scale`` multiplies the adapter's own. ``keep`` names what is taken over from the references, of "face", "hair",
    "clothes" and "body"; empty: all that the adapter can. ``blend`` mixes another character in, by ``blend_weight``
    in [0, 1].
    """

    features: IdentityFeatures
    scale: float = 1.0
    keep: frozenset[str] = frozenset()
    blend: IdentityFeatures | None = None
    blend_weight: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Tokens that share one softmax of the identity cross-attention.

    ``tokens`` is [n, D]. ``owner`` is the character in whose region the stream acts; None: everywhere. ``scale`` is
    what the maker wants it to count, those of its characters included; the adapter's own multiplies it. ``part``: it
    acts in this part of its owner alone (``parts.PARTS``).
    """

    tokens: Tensor
    owner: str | None
    scale: float = 1.0
    part: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A change of one weight of the UNet: ``scale * up @ down`` is added. [r, in] and [out, r]."""

    down: Tensor
    up: Tensor
    scale: float = 1.0


@dataclass(eq=False)
class LayerProjections:
    """Weights that make keys and values of one cross-attention layer from identity tokens, [C, D] each."""

    to_k: Tensor
    to_v: Tensor


class StreamMaker(nn.Module, ABC):
    """Makes identity tokens of features: the resampler of a method with the method's rules around it.

    Features are plain arrays: a maker brings them to the device and dtype of its weights.
    """

    by_parts: ClassVar[bool] = False
    """Whether streams are of parts: a story then has maps of the words for these."""

    @property
    def config(self) -> dict[str, Any]:
        """What ``from_config`` makes an equal module of, but for its weights: plain values, kept as JSON."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A maker with fresh weights.

        Raises:
            TypeError, ValueError: the configuration is not one of this method.
        """
        return cls(**config)

    @abstractmethod
    def streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """The streams of a frame in which these characters are, in the order of the story's cast.

        Raises:
            FeaturesError: a character's references lack what the method needs.
        """

    @abstractmethod
    def negative_streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """The streams of the same frame under the negative prompt; as many, of the same lengths and owners."""


class NoStreams(StreamMaker):
    """Of adapters that say what they say in words alone."""

    def streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """None."""
        return []

    def negative_streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        """None."""
        return []


class WordMaker(nn.Module, ABC):
    """Writes persons into the text of a prompt, at the class words of their descriptions (``class_words``).

    The last token of a class word is repeated, once for each embedding of the person, before the text encoders read
    it; what they make of these tokens is then fused with the embeddings.
    """

    @abstractmethod
    def identities(self, name: str, character: CharacterIdentity) -> Tensor:
        """The embeddings of a person, [n, D], D being the text's width.

        Raises:
            FeaturesError: the references of the character ``name`` lack what the method needs.
        """

    @abstractmethod
    def fuse(self, words: Tensor, identities: Tensor) -> Tensor:
        """The text at a class word's tokens [n, D] and the person's embeddings [n, D] -> the text in its place."""


@dataclass(eq=False)
class IdentityAdapter:
    """One loaded identity adapter: of streams, of words, or of both.

    ``layers`` has an entry for each cross-attention layer, in the order of diffusers' ``unet.attn_processors``; there
    are none where ``maker`` is ``NoStreams``. ``words`` writes persons into the text; the first ``words_start`` of the
    steps, a part of them in [0, 1], read the text without, so that it decides the layout.
    ``low_rank`` is by UNet parameter name and fused into a variant of the UNet: stories with the adapter and without it
    then take steps in calls of their own (the compatibility key). ``encoders`` is the fingerprint of the
    networks whose features the maker was trained on (``IdentityFeatures.networks``); None: any of the right sizes.
    """

    name: str
    maker: StreamMaker
    layers: Sequence[LayerProjections]
    scale: float = 1.0
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    encoders: str | None = None
    words: WordMaker | None = None
    words_start: float = 0.0
