"""A start for the ID-Injector: its tokens first say of a face what the text encoder says of it in words.

The UNet can draw from the text encoder's states already, so that what the diffusion loss has to teach is what words
leave out. The identity keys and values too can learn from such tokens, before there is anything that makes them.
Identity adapters are seldom trained from nothing either: StoryMaker starts from IP-Adapter-FaceID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from storyloom_model.identity.storynizor import StorynizorInjector
from storyloom_training.base import TextToImage
from storyloom_training.device import mixed_precision
from storyloom_training.identity.adapters.stage import Bench
from storyloom_training.loop import Losses, Stage, run
from storyloom_training.storydb.captions import FaceDescription, describe_face

_CHUNK = 256


@torch.no_grad()
def said_states(
    model: TextToImage, tokenizer: CLIPTokenizer, descriptions: Sequence[FaceDescription], tokens: int
) -> Tensor:
    """States [n, tokens, width] at the ends of each description's last phrases; the last has read all of it."""
    parts = []
    for start in track(range(0, len(descriptions), _CHUNK), "reading descriptions"):
        chunk = descriptions[start : start + _CHUNK]
        texts = [description.text for description in chunk]
        states = model.encode(tokenizer, texts).float()
        offsets = tokenizer(texts, truncation=True, return_offsets_mapping=True)["offset_mapping"]
        places = [
            [next(i for i, (_, last) in enumerate(row) if last >= end) for end in description.ends[-tokens:]]
            for row, description in zip(offsets, chunk, strict=True)
        ]
        parts.append(states[torch.arange(len(chunk))[:, None], torch.tensor(places)])
    return torch.cat(parts)


@dataclass(frozen=True)
class Sayings:
    """What the text says of the people of a data set: states [people, tokens, width], and whom each entry shows."""

    states: Tensor
    person: Tensor

    @classmethod
    def of(cls, bench: Bench, tokens: int) -> Sayings:
        """One description of each person whose face is seen."""
        data, table = bench.source.data, bench.source.features.table
        places = (table >= 0).nonzero()
        people: dict[tuple[int, int], int] = {}
        person = torch.empty(len(places), dtype=torch.long)
        descriptions: list[FaceDescription] = []
        for group, frame, place in places.tolist():
            if (group, place) not in people:
                people[group, place] = len(descriptions)
                rng = Random(f"say:{group}:{place}")  # noqa: S311
                descriptions.append(describe_face(rng, data.group(group).cast[place]))
            person[table[group, frame, place]] = people[group, place]
        return cls(said_states(bench.model, bench.tokenizer, descriptions, tokens), person)

    def __call__(self, entries: Tensor) -> Tensor:
        """Entries int64 [n] -> states [n, tokens, width]."""
        return self.states[self.person[entries]]


def learn_to_say(bench: Bench, folder: Path, maker: StorynizorInjector, sayings: Sayings) -> None:
    """Trains the resampler alone on what is said; 1.0 is the loss of saying the same of everyone."""
    plan, features = bench.plan, bench.source.features
    spread = sayings.states.var(0).mean()
    stage = Stage(
        name="say",
        folder=folder,
        model=maker,
        optimizer=torch.optim.AdamW(maker.parameters(), lr=plan.learning_rate, weight_decay=0.01, fused=True),
        steps=plan.say_steps,
        warmup=plan.warmup,
        learning_rate=plan.learning_rate,
        generator=torch.Generator().manual_seed(bench.recipe.seed + 5),
    )

    def compute(stage: Stage) -> Losses:
        entries = torch.randint(len(sayings.person), (plan.say_batch,), generator=stage.generator)
        with mixed_precision(sayings.states.device):
            made = maker(features.take("face", entries), features.take("face_states", entries)).float()
        return {"loss": F.mse_loss(made, sayings(entries)) / spread}

    run(stage, compute)
