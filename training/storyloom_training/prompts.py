"""The captions that training draws for rendered pictures."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from storyloom_training.storydb.captions import Caption, Description, describe_cast, describe_in_part, write_caption
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import FrameRecord
from storyloom_training.storydb.people import Person


@dataclass(frozen=True)
class DescribedFrame:
    """A frame, its caption, and what the caption's descriptions state."""

    cast: tuple[Person, ...]
    record: FrameRecord
    descriptions: tuple[Description, ...]
    caption: Caption


@dataclass(frozen=True)
class Captioner:
    """Writes captions of the rendered set; one wording per (picture, draw).

    With `full` below 1 some captions say little of a person, as `describe_in_part` draws it with `clothes`: prompts
    as short as "a woman and a boy" are to draw two people as well.
    """

    data: StoryDB
    wordings: int = 16
    full: float = 1.0
    clothes: float = 0.0

    def __call__(self, picture: int, draw: int) -> Caption:
        return self.described(picture, draw).caption

    def of_group(self, index: int, frames: list[int], draw: int) -> list[Caption]:
        """Captions of frames of one group, with one shared description per character."""
        return [frame.caption for frame in self._described(index, frames, draw)]

    def described(self, picture: int, draw: int) -> DescribedFrame:
        """The caption of one picture with what it is about."""
        return self._described(picture // self.data.frames, [picture % self.data.frames], draw)[0]

    def _described(self, index: int, frames: list[int], draw: int) -> list[DescribedFrame]:
        group = self.data.group(index)
        rng = Random(f"{index}:{draw}")  # noqa: S311
        if self.full < 1:
            descriptions = tuple(
                describe_in_part(rng, person, full=self.full, clothes=self.clothes) for person in group.cast
            )
        else:
            descriptions = describe_cast(group, draw % self.wordings)
        texts = tuple(description.text for description in descriptions)
        return [
            DescribedFrame(
                group.cast, group.frames[frame], descriptions, write_caption(rng, group.frames[frame], texts)
            )
            for frame in frames
        ]
