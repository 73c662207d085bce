"""Scores references: `python -m benchmarks.identity.run`, or `make quality-identity`.

Held-out people, a reference picture of each, stories of one and of two characters; a face recogniser that no adapter
has seen says how alike the faces are. Beside the package's identity adapters: the same prompts without a reference,
and with everything told in words. The row `renders` scores the true pictures and so bounds what can be measured.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.identity.cases import IdentityCase, identity_case
from benchmarks.identity.generate import NO_REFERENCE, WORDS, Setting, features, story_job
from benchmarks.identity.report import sheet, write
from benchmarks.identity.scores import Embedding, IdentityScore, score
from benchmarks.quality.generate import Pictures, make
from benchmarks.quality.judge import Judge
from benchmarks.quality.network import Reader
from benchmarks.quality.report import machine
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.encoders.faces import FaceEncoder
from storyloom_model.identity.encoders.pictures import ReferenceProblem
from storyloom_model.identity.encoders.references import ReferenceEncoder
from storyloom_model.package import ModelPackage
from storyloom_training.storydb.picture import render

RENDERS = "renders"
_FACE = 112


class Eyes:
    """What looks at pictures: the package's detector finds faces, the judge tells them apart, the reader names."""

    def __init__(self, faces: FaceEncoder, judge: Judge, reader: Reader) -> None:
        self._faces = faces
        self._judge = judge
        self._reader = reader

    def faces(self, picture: np.ndarray) -> list[Embedding]:
        """The judge's embeddings of all faces that are found, left to right."""
        found = sorted(self._faces.faces(picture), key=lambda face: face.centre[0])
        crops = [face.crop(picture, _FACE) for face in found]
        return list(self._judge.embed(np.stack(crops))) if crops else []

    def measure(self, case: IdentityCase, strangers: Sequence[Embedding], pictures: Pictures) -> IdentityScore:
        """Scores one story."""
        references = [self.reference(picture.image) for picture in case.references]
        # A single character's stranger is another case's; two are each other's.
        others = references[::-1] if len(references) > 1 else strangers
        faces = [self.faces(picture) for picture in pictures]
        return score(case, references, others, faces, self._reader.read(pictures), pictures)

    def reference(self, picture: np.ndarray) -> Embedding:
        """The face of a reference, which has one: ``usable`` has seen to that."""
        return self.faces(picture)[0]


def usable(cases: Sequence[IdentityCase], encoder: ReferenceEncoder) -> tuple[list[IdentityCase], list[list[bytes]]]:
    """The cases whose references the package's encoders take, with what they say of them."""
    kept, known = [], []
    for case in track(cases, "references"):
        try:
            known.append(features(encoder, case))
        except ReferenceProblem:
            continue
        kept.append(case)
    return kept, known


def make_all(
    denoiser: Denoiser, cases: Sequence[IdentityCase], known: Sequence[list[bytes]], frames: int, steps: int, seed: int
) -> dict[str, list[Pictures]]:
    """The pictures of all cases by setting, the true ones first."""
    manifest = denoiser.manifest
    size = min(manifest.defaults.width, manifest.defaults.height)
    made = {RENDERS: [np.stack([render(case.group, i, size).image for i in range(frames)]) for case in cases]}
    for setting in (NO_REFERENCE, WORDS, *(Setting(name, name) for name in manifest.identity_adapters)):
        pairs = zip(cases, known, strict=True)
        jobs = [story_job(denoiser, case, setting, of, steps, seed) for case, of in pairs]
        label = f"{setting.name}, {len(cases[0].references)}"
        made[setting.name] = list(track(make(denoiser, jobs, 2 * frames), label, total=len(jobs)))
    return made


def main(
    model: Annotated[Path, typer.Option(help="Model package with encoders.")] = Path("weights/storyloom-mini"),
    stories: Annotated[int, typer.Option(min=2, help="Stories of one character, and of two.")] = 30,
    frames: Annotated[int, typer.Option(min=2, max=10, help="Frames of each story.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    output: Annotated[Path, typer.Option(help="Where results are written.")] = Path("benchmarks/results/identity"),
) -> None:
    """Scores every identity adapter of a package; writes quality.json, quality.md and a contact sheet for each."""
    torch.set_num_threads(threads)
    package = ModelPackage.load(model)
    parts = package.manifest.encoders
    if parts is None:
        raise typer.BadParameter(f"{model} has no encoders; it takes no references")
    segmenter = None if parts.segmenter is None else model / parts.segmenter
    encoder = ReferenceEncoder.load(model / parts.faces, model / parts.image, segmenter)
    eyes, denoiser = Eyes(encoder.faces, Judge.load(), Reader.load()), Denoiser.load(model)
    scores: dict[str, list[IdentityScore]] = {}
    left_out = []
    for people, who in ((1, "one character"), (2, "two characters")):
        cases, known = usable([identity_case(index, people, frames) for index in range(stories)], encoder)
        left_out.append(stories - len(cases))
        made = make_all(denoiser, cases, known, frames, steps, seed)
        first = [eyes.reference(case.references[0].image) for case in cases]
        strangers = [*first[1:], first[0]]
        for name, pictures in made.items():
            parted = zip(cases, strangers, pictures, strict=True)
            scores[f"{name}, {who}"] = [eyes.measure(case, [other], own) for case, other, own in parted]
        sheet(cases, made, output / f"quality-{people}.png")
    facts = {
        "command": shlex.join(["python", "-m", "benchmarks.identity.run", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "stories": stories,
        "frames": frames,
        "steps": steps,
        "seed": seed,
        "left_out": left_out,
        "machine": machine("cpu"),
    }
    Console().print(write(output, facts, scores), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
