"""Rounds of a story: each is made with the pictures of the one before as references. Plain numbers: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUNDS = "story-adapter"
"""The story method that makes its stories in rounds."""
MAX_ROUNDS = 32
MAX_SCALE = 2.0
"""Of a round's references."""


@dataclass(frozen=True, slots=True)
class WholePictures:
    """How an identity adapter takes whole pictures: what it reads of each (a field of ``ReferenceFeatures``), and the
    most that are shown to it at once.
    """

    reads: str
    most: int


ADAPTERS: Mapping[str, WholePictures] = {
    "ip-adapter": WholePictures("character_embedding", 128),
    "ip-adapter-plus": WholePictures("character_states", 32),
}
"""By the method of the identity adapter, those that rounds can use. The most is 512 tokens, with 4 and 16 a picture."""
MOST_TOKENS = 512
"""Of all pictures together."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often a story is made: ``count`` rounds in all, the first from the text alone. The others' references count
    from ``first_scale`` in the second round, in even steps, to ``last_scale`` in the last.
    """

    count: int
    first_scale: float
    last_scale: float

    @property
    def scales(self) -> tuple[float, ...]:
        """Of each round; 0 of the first, which has no references."""
        steps = max(self.count - 2, 1)
        span = self.last_scale - self.first_scale
        return (0.0, *(self.first_scale + span * place / steps for place in range(self.count - 1)))[: self.count]


def shown(pictures: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the pictures, evenly spread, the first and the last among them."""
    if len(pictures) <= most:
        return tuple(pictures)
    if most == 1:
        return (pictures[0],)
    return tuple(pictures[place * (len(pictures) - 1) // (most - 1)] for place in range(most))
