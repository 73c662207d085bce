"""A start for the ID-Injector: its tokens first say of a face what the text encoder says of it in words.

The UNet can draw from the text encoder's states already, so that what the diffusion loss has to teach is what words
leave out. Identity adapters are seldom trained from nothing either: StoryMaker starts from IP-Adapter-FaceID.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from storyloom_model.identity.storynizor import StorynizorInjector
from storyloom_training.base import TextToImage
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


def learn_to_say(bench: Bench, folder: Path, maker: StorynizorInjector) -> None:
    """Trains the resampler alone on the states of descriptions; 1.0 is the loss of saying the same of everyone."""
    plan, data, features = bench.plan, bench.source.data, bench.source.features
    table = features.table
    places = (table >= 0).nonzero()
    people: dict[tuple[int, int], int] = {}
    of_entry = torch.empty(len(places), dtype=torch.long)
    descriptions: list[FaceDescription] = []
    for group, frame, person in places.tolist():
        if (group, person) not in people:
            people[group, person] = len(descriptions)
            descriptions.append(describe_face(Random(f"say:{group}:{person}"), data.group(group).cast[person]))  # noqa: S311
        of_entry[table[group, frame, person]] = people[group, person]
    wanted = said_states(bench.model, bench.tokenizer, descriptions, maker.sizes.tokens)
    spread = wanted.var(0).mean()
    stage = Stage(
        name="say",
        folder=folder,
        model=maker,
        optimizer=torch.optim.AdamW(maker.parameters(), lr=plan.learning_rate, weight_decay=0.01),
        steps=plan.say_steps,
        warmup=plan.warmup,
        learning_rate=plan.learning_rate,
        generator=torch.Generator().manual_seed(bench.recipe.seed + 5),
    )

    def compute(stage: Stage) -> Losses:
        entries = torch.randint(len(of_entry), (plan.say_batch,), generator=stage.generator)
        made = maker(features.take("face", entries), features.take("face_states", entries))
        return {"loss": F.mse_loss(made, wanted[of_entry[entries]]) / spread}

    run(stage, compute)
