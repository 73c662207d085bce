"""Trains the attribute reader on rendered pictures: `python -m benchmarks.quality.reader`.

Writes `reader.safetensors`, and `reader.json` with what it reads right on held-out pictures. It learns from renders of
training identities alone, and is measured on renders of test identities that neither it nor any model has seen.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.quality.attributes import HEADS, PERSON, VISIBLE, Reading, truth
from benchmarks.quality.network import WEIGHTS, AttributeNet, Reader
from storyloom_training.config import MINI_128
from storyloom_training.identity.blocks import to_input, whiten
from storyloom_training.muon import Muon
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split, sample_group
from storyloom_training.storydb.picture import render

DATA = Path("runs") / MINI_128.name / "data"
SETTING_WEIGHT = 0.3  # of scene, time, framing and pose, which are easy or not scored
IGNORED = -100  # the label of what a picture does not show, which cross_entropy leaves out


@dataclass(frozen=True)
class LabelledPictures:
    """`places[i]` is the row of `pictures` that `labels[:, i]` describes (int64 [heads, n])."""

    pictures: npt.NDArray[np.uint8]
    places: npt.NDArray[np.int64]
    labels: Tensor


def label(reading: Reading) -> list[int]:
    """Class numbers in the order of `HEADS`; IGNORED where the framing hides the attribute."""
    visible = VISIBLE[reading["framing"]]
    return [values.index(reading[name]) if name in visible else IGNORED for name, values in HEADS.items()]


def single_person(data: StoryDB) -> LabelledPictures:
    """The pictures of the one-person groups of a rendered set.

    Raises:
        ValueError: there is no such group.
    """
    places, labels = [], []
    for index in range(data.groups):
        group = data.group(index)
        if len(group.cast) == 1:
            for frame in range(data.frames):
                places.append(index * data.frames + frame)
                labels.append(label(truth(group, frame)))
    if not places:
        raise ValueError(f"none of the {data.groups} groups has one person; render more of them")
    return LabelledPictures(data.pictures, np.array(places), torch.tensor(labels).T)


def augment(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Softens, shifts, tints and grains a batch [n, 3, h, w], so that made pictures read like rendered ones."""
    count, _, height, width = pictures.shape
    if torch.rand((), generator=draw) < 0.5:
        factor = 0.55 + 0.4 * torch.rand((), generator=draw).item()
        small = F.interpolate(pictures, scale_factor=factor, mode="bilinear", antialias=True)
        pictures = F.interpolate(small, (height, width), mode="bilinear")
    shift = torch.randint(-height // 40, height // 40 + 1, (2,), generator=draw).tolist()
    pictures = torch.roll(pictures, shift, (2, 3))
    gain = 1 + 0.12 * (torch.rand(count, 3, 1, 1, generator=draw) - 0.5)
    offset = 0.12 * (torch.rand(count, 1, 1, 1, generator=draw) - 0.5)
    grain = 0.05 * torch.rand(count, 1, 1, 1, generator=draw)
    return pictures * gain + offset + grain * torch.randn(pictures.shape, generator=draw)


def loss_of(logits: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Weighted mean over the attributes of the cross entropy where they are visible; `labels` int64 [heads, n]."""
    losses = []
    for (name, values), wanted in zip(logits.items(), labels, strict=True):
        seen = (wanted != IGNORED).sum().clamp(min=1)
        total = F.cross_entropy(values.float(), wanted, ignore_index=IGNORED, reduction="sum") / seen
        losses.append(total * (1.0 if name in PERSON else SETTING_WEIGHT))
    return torch.stack(losses).mean()


def _optimizers(network: AttributeNet) -> list[torch.optim.Optimizer]:
    convolutions = [p for part in (network.stem, network.stages) for p in part.parameters() if p.ndim == 4]
    taken = {id(weight) for weight in convolutions}
    rest = [weight for weight in network.parameters() if id(weight) not in taken]
    return [Muon(convolutions, lr=0.1), torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.01)]


def train(data: LabelledPictures, steps: int, batch: int, seed: int) -> AttributeNet:
    """Trains from scratch: a short warm-up, then the step sizes fall linearly to 2 %."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    network = AttributeNet().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    sample = torch.randint(len(data.places), (min(200, len(data.places)),), generator=draw)
    whiten(network.stem[0], to_input(torch.from_numpy(data.pictures[data.places[sample.numpy()]])))
    optimizers = _optimizers(network)
    schedules = [
        LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - 0.98 * step / steps))
        for optimizer in optimizers
    ]
    for _ in track(range(steps), "training"):
        chosen = torch.randint(len(data.places), (batch,), generator=draw)
        pictures = augment(to_input(torch.from_numpy(data.pictures[data.places[chosen.numpy()]])), draw)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(pictures.contiguous(memory_format=torch.channels_last))
        network.zero_grad(set_to_none=True)
        loss_of(logits, data.labels[:, chosen]).backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    return cast(AttributeNet, network)


def held_out(people: int, frames: int, size: int) -> tuple[npt.NDArray[np.uint8], list[Reading]]:
    """Renders of test identities and what they show; the same numbers give the same pictures."""
    groups = [sample_group(Split.TEST, index, people=1, frames=frames) for index in range(people)]
    pictures = [render(group, frame, size).image for group in groups for frame in range(frames)]
    return np.stack(pictures), [truth(group, frame) for group in groups for frame in range(frames)]


def measure(reader: Reader, pictures: npt.NDArray[np.uint8], truths: list[Reading]) -> dict[str, dict[str, float]]:
    """Fraction read right, {framing: {attribute: fraction}}, of the attributes that each framing shows."""
    readings = reader.read(pictures)
    table: dict[str, dict[str, float]] = {}
    for framing, visible in VISIBLE.items():
        pairs = [(r, t) for r, t in zip(readings, truths, strict=True) if t["framing"] == framing]
        if pairs:
            table[framing] = {
                name: round(sum(r[name] == t[name] for r, t in pairs) / len(pairs), 4)
                for name in HEADS
                if name in visible
            }
    return table


def mean_accuracy(table: dict[str, dict[str, float]], names: Collection[str]) -> float:
    """Mean over framings and the attributes among `names` that each shows."""
    return float(np.mean([value for row in table.values() for name, value in row.items() if name in names]))


def main(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1700,
    batch: Annotated[int, typer.Option(min=2, help="Pictures per step.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and augmentation.")] = 0,
    groups: Annotated[int, typer.Option(min=1, help="Rendered training groups.")] = MINI_128.data.groups,
    size: Annotated[int, typer.Option(min=32, help="Side of the training pictures.")] = MINI_128.data.size,
    data: Annotated[Path, typer.Option(help="Folder of the rendered training set, made if missing.")] = DATA,
    people: Annotated[int, typer.Option(min=1, help="Test identities to measure on, 8 pictures each.")] = 250,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    output: Annotated[Path, typer.Option(help="Where the weights go; a .json of the same name beside it.")] = WEIGHTS,
) -> None:
    """Trains the reader and measures it on renders of test identities."""
    torch.set_num_threads(threads)
    plan = MINI_128.data
    rendered = StoryDB(data, Split.TRAIN, groups, plan.frames, size, size * plan.mask_size // plan.size)
    rendered.prepare()
    started = time.monotonic()
    Reader(train(single_person(rendered), steps, batch, seed)).save(output)
    seconds = time.monotonic() - started
    pictures, truths = held_out(people, plan.frames, size)
    table = measure(Reader.load(output), pictures, truths)
    record = {
        "mean": round(mean_accuracy(table, HEADS), 4),
        "mean_person": round(mean_accuracy(table, PERSON), 4),
        "pictures": len(truths),
        "accuracy": table,
        "command": shlex.join(["python", "-m", "benchmarks.quality.reader", *sys.argv[1:]]),
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "seconds": round(seconds, 1),
        "threads": threads,
    }
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    Console().print_json(data=record)


if __name__ == "__main__":
    typer.run(main)
