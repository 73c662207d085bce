"""Stage 2: the text encoder learns to read captions, before any picture is made from it.

A text encoder that learns from the diffusion loss alone takes most of a short training to tell hair from garments and
one person from the next. Here it first learns to name, at the end of a description, what that description states, and
at the end of the caption everything that the picture shows. Stable Diffusion's text encoder too is trained beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from storyloom_training.config import Recipe
from storyloom_training.device import mixed_precision
from storyloom_training.loop import Losses, Stage, run
from storyloom_training.prompts import Captioner, DescribedFrame
from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.dataset import MAX_PEOPLE
from storyloom_training.storydb.pose import POSES

PERSON: dict[str, tuple[str, ...]] = {
    "place": tuple(str(place) for place in range(MAX_PEOPLE)),
    "age": tuple(words.AGE),
    "gender": ("female", "male"),
    "skin": tuple(words.SKIN),
    "hair style": tuple(words.HAIR_STYLE),
    "hair colour": (*words.HAIR_COLOUR, "none"),
    "glasses": tuple(words.GLASSES),
    "facial hair": tuple(words.FACIAL_HAIR),
    "top": words.TOPS,
    "top colour": tuple(words.COLOUR),
    "top pattern": words.PATTERNS,
    "bottom": (*words.BOTTOMS, "none"),
    "bottom colour": (*words.COLOUR, "none"),
    "hat": tuple(words.HATS),
    "hat colour": tuple(words.COLOUR),
}
"""What a description can state; class 0 of each is "not stated"."""
WHOLE: dict[str, tuple[str, ...]] = {
    "scene": tuple(words.SCENES),
    "time": tuple(words.TIMES),
    "framing": tuple(words.FRAMINGS),
} | {f"pose {place}": tuple(POSES) for place in range(MAX_PEOPLE)}
"""What a caption states of the whole picture; class 0 as above."""


def person_labels(frame: DescribedFrame, place: int) -> list[int]:
    """Class of each entry of PERSON for one person; all 0 where there is nobody."""
    if place >= len(frame.descriptions):
        return [0] * len(PERSON)
    person, stated = frame.cast[place], frame.descriptions[place].stated
    values = person.attributes() | {"place": str(place), "hat colour": person.hat.colour if person.hat else ""}
    said = stated | {"place"} | ({"hat colour"} if "hat" in stated else set())
    return [1 + classes.index(values[name]) if name in said else 0 for name, classes in PERSON.items()]


def whole_labels(frame: DescribedFrame) -> list[int]:
    """Class of each entry of WHOLE."""
    record = frame.record
    values = {"scene": record.scene, "time": record.time} | {
        f"pose {place}": pose for place, pose in enumerate(record.poses)
    }
    if frame.caption.spans[0][0] > 0:
        values["framing"] = record.framing
    return [1 + classes.index(values[name]) if name in values else 0 for name, classes in WHOLE.items()]


class _Heads(nn.Module):
    """Linear classifiers on hidden states [n, width], one per attribute."""

    def __init__(self, width: int, attributes: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.sizes = [1 + len(classes) for classes in attributes.values()]
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropy and fraction right over `labels` [n, attributes]."""
        scores = self.linear(states).float().split(self.sizes, dim=1)
        columns = list(zip(scores, labels.T, strict=True))
        loss = torch.stack([F.cross_entropy(score, column) for score, column in columns]).mean()
        right = torch.stack([(score.argmax(1) == column).float().mean() for score, column in columns]).mean()
        return loss, right


class CaptionReader(nn.Module):
    """The text encoder with what reads its states; only the encoder is kept."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        width = text_encoder.config.hidden_size
        self.text_encoder = text_encoder
        self.described = _Heads(width, PERSON)
        self.people = nn.ModuleList(_Heads(width, PERSON) for _ in range(MAX_PEOPLE))
        self.whole = _Heads(width, WHOLE)


@dataclass(frozen=True)
class _Batch:
    ids: Tensor  # [n, tokens]
    ends: list[tuple[int, int, int]]  # (row, last token, place) of each description that was not cut
    after: Tensor  # [n]: a position from the end token on, all of which have seen the whole caption


def tokenise(tokenizer: CLIPTokenizer, frames: Sequence[DescribedFrame], draw: torch.Generator) -> _Batch:
    texts = [frame.caption.text for frame in frames]
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt", return_offsets_mapping=True)
    ends = []
    for row, frame in enumerate(frames):
        offsets = encoded["offset_mapping"][row].tolist()
        for place, (_, stop) in enumerate(frame.caption.spans):
            found = [token for token, (start, end) in enumerate(offsets) if start < stop <= end]
            if found:
                ends.append((row, found[0], place))
    lengths = encoded["attention_mask"].sum(1)
    beyond = (torch.rand(len(frames), generator=draw) * (encoded["input_ids"].shape[1] - lengths + 1)).long()
    return _Batch(encoded["input_ids"], ends, lengths - 1 + beyond)


def train_caption_reader(
    recipe: Recipe, captioner: Captioner, folder: Path, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """Trains `text_encoder` in place."""
    plan = recipe.text
    torch.manual_seed(recipe.seed)
    device = text_encoder.device
    reader = CaptionReader(text_encoder).to(device)
    stage = Stage(
        name="text",
        folder=folder,
        model=reader,
        optimizer=torch.optim.AdamW(reader.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
        steps=plan.steps,
        warmup=plan.warmup,
        learning_rate=plan.learning_rate,
        generator=torch.Generator().manual_seed(recipe.seed + 5),
    )
    total = captioner.data.groups * captioner.data.frames

    def compute(stage: Stage) -> Losses:
        pictures = torch.randint(total, (plan.batch,), generator=stage.generator).tolist()
        frames = [captioner.described(picture, stage.step) for picture in pictures]
        batch = tokenise(tokenizer, frames, stage.generator)
        with mixed_precision(device):
            states = reader.text_encoder(batch.ids.to(device)).last_hidden_state
        rows, tokens, places = (torch.tensor(column, device=device) for column in zip(*batch.ends, strict=True))
        people = torch.tensor([[person_labels(frame, i) for i in range(MAX_PEOPLE)] for frame in frames], device=device)
        last = states[torch.arange(len(frames)), batch.after.to(device)]
        results = [reader.described(states[rows, tokens], people[rows, places])]
        results += [heads(last, people[:, place]) for place, heads in enumerate(reader.people)]
        results.append(reader.whole(last, torch.tensor([whole_labels(frame) for frame in frames], device=device)))
        losses, rights = zip(*results, strict=True)
        return {"loss": torch.stack(losses).mean(), "right": torch.stack(rights).mean().detach()}

    run(stage, compute)
