"""What the text encoder says of people in words, as tokens: what identity adapters start from.

The UNet can draw from the text encoder's states already, so that what the diffusion loss has to teach is what words
leave out. Identity adapters are seldom trained from nothing either: StoryMaker starts from IP-Adapter-FaceID.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random

import torch
from rich.progress import track
from torch import Tensor
from transformers import CLIPTokenizer

from storyloom_training.base import TextToImage
from storyloom_training.identity.adapters.stage import Bench
from storyloom_training.storydb.captions import FullDescription, describe_briefly, describe_fully
from storyloom_training.storydb.people import Person

_CHUNK = 64


@torch.no_grad()
def said_states(
    model: TextToImage, tokenizer: CLIPTokenizer, descriptions: Sequence[FullDescription], tokens: int
) -> Tensor:
    """States [n, tokens, width] at the ends of each description's last phrases; the last has read all of it.

    Where there are more tokens than phrases, these come round again.
    """
    parts = []
    for start in track(range(0, len(descriptions), _CHUNK), "reading descriptions"):
        chunk = descriptions[start : start + _CHUNK]
        texts = [description.text for description in chunk]
        states = model.encode(tokenizer, texts).float()
        offsets = tokenizer(texts, truncation=True, return_offsets_mapping=True)["offset_mapping"]
        places = [
            [next(i for i, (_, last) in enumerate(row) if last >= end) for end in _last(description.ends, tokens)]
            for row, description in zip(offsets, chunk, strict=True)
        ]
        parts.append(states[torch.arange(len(chunk))[:, None], torch.tensor(places)])
    return torch.cat(parts)


def _last(ends: tuple[int, ...], count: int) -> list[int]:
    return list(islice(cycle(reversed(ends)), count))[::-1]


@dataclass(frozen=True)
class Sayings:
    """States [people, tokens, width] of what is said, and whom each entry of the features shows, int64 [entries]."""

    states: Tensor
    person: Tensor

    @classmethod
    def of(cls, bench: Bench, tokens: int, *, clothes: bool) -> Sayings:
        """One description of each person whose face is seen, of the face alone or of the `clothes` too."""
        return cls._of(bench, tokens, lambda rng, person: describe_fully(rng, person, clothes=clothes))

    @classmethod
    def of_nouns(cls, bench: Bench) -> Sayings:
        """One word for each such person, as "woman": its state alone."""

        def called(rng: Random, person: Person) -> FullDescription:
            text = describe_briefly(rng, person, clothes=False).text
            return FullDescription(text, (len(text),))

        return cls._of(bench, 1, called)

    @classmethod
    def _of(cls, bench: Bench, tokens: int, describe: Callable[[Random, Person], FullDescription]) -> Sayings:
        data, table = bench.source.data, bench.source.features.table
        places = (table >= 0).nonzero()
        people: dict[tuple[int, int], int] = {}
        person = torch.empty(len(places), dtype=torch.long)
        descriptions: list[FullDescription] = []
        for group, frame, place in places.tolist():
            if (group, place) not in people:
                people[group, place] = len(descriptions)
                rng = Random(f"say:{group}:{place}")  # noqa: S311
                descriptions.append(describe(rng, data.group(group).cast[place]))
            person[table[group, frame, place]] = people[group, place]
        return cls(said_states(bench.model, bench.tokenizer, descriptions, tokens), person)

    def __call__(self, entries: Tensor) -> Tensor:
        """Entries int64 [n] -> states [n, tokens, width]."""
        return self.states[self.person[entries]]

    def beside(self, other: Sayings) -> Sayings:
        """These tokens, then what the other says of the same people."""
        return Sayings(torch.cat((self.states, other.states), dim=1), self.person)
