"""Trains the judge on rendered faces: `python -m benchmarks.quality.judge_training`.

Writes `judge.safetensors`, and `judge.json` with how well it verifies held-out people. Its training faces are drawn
with another seed than those of the package's recogniser; neither's are in the test split.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.quality.judge import WEIGHTS, Judge, JudgeNet
from storyloom_training.identity.config import RecogniserRecipe
from storyloom_training.identity.data import face_set
from storyloom_training.identity.recogniser import train_recogniser
from storyloom_training.identity.verification import verify
from storyloom_training.storydb.groups import Split

SEED = 7


def main(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 700,
    people: Annotated[int, typer.Option(min=2, help="Training faces.")] = 2000,
    pictures: Annotated[int, typer.Option(min=2, help="Pictures of each.")] = 6,
    held_out: Annotated[int, typer.Option(min=2, help="Faces of the test split to measure on.")] = 150,
    folder: Annotated[Path, typer.Option(help="Rendered faces and checkpoints.")] = Path("runs/identity"),
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
    output: Annotated[Path, typer.Option(help="Where the weights go; a .json beside them.")] = WEIGHTS,
) -> None:
    """Trains the judge and measures it on held-out people."""
    torch.set_num_threads(1)
    data = face_set(folder / "data" / "judge", Split.TRAIN, people, pictures, 112, SEED, workers)
    test = face_set(folder / "data" / "judge-test", Split.TEST, held_out, pictures, 112, SEED, workers)
    recipe = RecogniserRecipe(steps=steps, seed=SEED)
    Judge(train_recogniser(recipe, data, folder / "judge", JudgeNet())).save(output)
    scores = verify(Judge.load(output).embed, test)
    record = {
        "people": people, "pictures": pictures, "steps": steps, "batch": recipe.batch, "seed": SEED,
        "verification": {name: score.record() for name, score in scores.items()},
    }  # fmt: skip
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
