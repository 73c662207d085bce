"""What a benchmark asks for: a story in Storyloom's words, and what is known of its cast beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyloom import Character, Reference, Story
from storyloom_training.storydb.groups import Group

Pixels = npt.NDArray[np.uint8]
"""A picture [h, w, 3], RGB."""


@dataclass(frozen=True)
class BenchmarkStory:
    """One story of a benchmark.

    Attributes:
        name: the folder of its pictures.
        story: the cast and the frames. Settings are the method's.
        casts: for each frame, the names of the characters in it.
        references: contents of a picture file for each character that has one.
        group: what the pictures should show, of a story about held-out people; its renders bound the figures.
    """

    name: str
    story: Story
    casts: tuple[tuple[str, ...], ...]
    references: Mapping[str, bytes] = field(default_factory=dict)
    group: Group | None = None

    @property
    def people(self) -> int:
        """Characters of the whole story."""
        return len(self.story.characters)

    def descriptions(self, frame: int) -> tuple[str, ...]:
        """How those in a frame look, in words."""
        return tuple(self.story.characters[name].description for name in self.casts[frame])

    def first(self, frames: int) -> BenchmarkStory:
        """The story cut off after so many frames."""
        story = self.story.model_copy(update={"frames": self.story.frames[:frames]})
        return replace(self, story=story, casts=self.casts[:frames])

    def with_references(self, references: Mapping[str, bytes]) -> BenchmarkStory:
        """The story with reference pictures for some or all of its characters."""
        return replace(self, references=references)

    def asked(self, *, references: bool) -> Story:
        """What the server is asked for, with or without the reference pictures."""
        if not references or not self.references:
            return self.story
        cast = {
            name: Character(description=character.description, references=self._of(name))
            for name, character in self.story.characters.items()
        }
        return self.story.model_copy(update={"characters": cast})

    def _of(self, name: str) -> tuple[Reference, ...]:
        return (Reference(picture=self.references[name]),) if name in self.references else ()


@dataclass(frozen=True)
class MadeStory:
    """A story and its pictures.

    Attributes:
        prompts: the text that the model was given for each frame.
        pictures: one for each frame.
        files: where they are; empty for pictures that are nowhere.
    """

    asked: BenchmarkStory
    prompts: tuple[str, ...]
    pictures: tuple[Pixels, ...]
    files: tuple[Path, ...] = ()
