"""Captions of groups for identity training: most say little of a person, so that looks must come from references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from storyloom_training.storydb.captions import Caption, describe_in_part, write_caption
from storyloom_training.storydb.dataset import StoryDB


@dataclass(frozen=True)
class IdentityCaptioner:
    """One wording per (group, draw).

    Of each person a caption says as much as `describe_in_part` draws with the odds `full` and `clothes`.
    """

    data: StoryDB
    full: float
    clothes: float

    def __call__(self, index: int, frames: Sequence[int], draw: int) -> list[Caption]:
        """Captions of frames of one group, with one shared description per person."""
        rng = Random(f"identity:{self.data.split.value}:{index}:{draw}")  # noqa: S311 - data, not secrets
        group = self.data.group(index)
        texts = tuple(describe_in_part(rng, person, full=self.full, clothes=self.clothes).text for person in group.cast)
        return [write_caption(rng, group.frames[frame], texts) for frame in frames]
