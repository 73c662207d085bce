"""Captions of groups for identity training: most say little of a person, so that looks must come from references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from storyloom_training.storydb.captions import Caption, Description, describe, describe_briefly, write_caption
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.people import Person


@dataclass(frozen=True)
class IdentityCaptioner:
    """One wording per (group, draw).

    Of each person a caption says everything with odds `full`, the garments alone with odds `clothes`, and else hardly
    more than "a woman".
    """

    data: StoryDB
    full: float
    clothes: float

    def __call__(self, index: int, frames: Sequence[int], draw: int) -> list[Caption]:
        """Captions of frames of one group, with one shared description per person."""
        rng = Random(f"identity:{self.data.split.value}:{index}:{draw}")  # noqa: S311 - data, not secrets
        group = self.data.group(index)
        texts = tuple(self._describe(rng, person).text for person in group.cast)
        return [write_caption(rng, group.frames[frame], texts) for frame in frames]

    def _describe(self, rng: Random, person: Person) -> Description:
        said = rng.random()
        if said < self.full:
            return describe(rng, person)
        return describe_briefly(rng, person, clothes=said < self.full + self.clothes)
