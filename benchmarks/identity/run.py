"""Scores references: `python -m benchmarks.identity.run`, or `make quality-identity`.

Held-out people, a reference picture of each, stories of one and of two characters; a face recogniser that no adapter
has seen says how alike the faces are. Compared are the package's identity adapters, and those of the papers' ablations
where a folder has them: NAME.safetensors as `storyloom_training.identity.adapters NAME` writes it. Beside them: the
same prompts without a reference, and with everything told in words. The row `renders` scores the true pictures and so
bounds what can be measured. A run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.facts import facts_of_run
from benchmarks.identity.cases import IdentityCase, Saying, identity_case
from benchmarks.identity.generate import Maker, features, model_digest
from benchmarks.identity.report import sheet, write
from benchmarks.identity.scores import Embedding, IdentityScore, score
from benchmarks.identity.settings import ADAPTERS, NO_REFERENCE, WORDS, Setting, adapter_files, package_with
from benchmarks.quality.generate import Pictures
from benchmarks.quality.judge import Judge
from benchmarks.quality.network import Reader
from benchmarks.quality.run import Dtype
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


def make_all(maker: Maker, cases: Sequence[IdentityCase], known: Sequence[list[bytes]]) -> dict[str, list[Pictures]]:
    """The pictures of all cases by setting, the true ones first."""
    manifest, frames = maker.denoiser.manifest, len(cases[0].generic)
    size = min(manifest.defaults.width, manifest.defaults.height)
    made = {RENDERS: [np.stack([render(case.group, i, size).image for i in range(frames)]) for case in cases]}
    for setting in (NO_REFERENCE, WORDS, *(Setting(name, name) for name in maker.adapters)):
        label = f"{setting.name}, {len(cases[0].references)}"
        made[setting.name] = list(track(maker.stories(setting, cases, known), label, total=len(cases)))
    return made


def measure_all(
    eyes: Eyes, cases: Sequence[IdentityCase], made: dict[str, list[Pictures]]
) -> dict[str, list[IdentityScore]]:
    """The scores of all cases by setting."""
    first = [eyes.reference(case.references[0].image) for case in cases]
    strangers = [*first[1:], first[0]]
    return {
        name: [eyes.measure(case, [other], own) for case, other, own in zip(cases, strangers, pictures, strict=True)]
        for name, pictures in made.items()
    }


def main(
    model: Annotated[Path, typer.Option(help="Model package with encoders.")] = Path("weights/storyloom-mini"),
    adapters: Annotated[Path | None, typer.Option(help="Folder with adapters that the package has not.")] = None,
    saying: Annotated[
        Saying | None,
        typer.Option(help="How much prompts say of people; default: brief, of two people clothes."),
    ] = None,
    stories: Annotated[int, typer.Option(min=2, help="Stories of one character, and of two.")] = 30,
    frames: Annotated[int, typer.Option(min=2, max=10, help="Frames of each story.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Number type of the model.")] = Dtype.float32,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    work: Annotated[Path, typer.Option(help="Where finished stories are kept.")] = Path("runs/quality-identity"),
    output: Annotated[Path, typer.Option(help="Where results are written.")] = Path("benchmarks/results/identity"),
) -> None:
    """Scores every identity adapter there is; writes quality.json, quality.md and contact sheets."""
    torch.set_num_threads(threads)
    package, console = ModelPackage.load(model), Console()
    files = adapter_files(package, adapters)
    absent = [name for name in ADAPTERS if name not in files]
    for name in absent:
        console.print(f"{name} is left out: neither {model} nor --adapters has it", style="yellow", markup=False)
    denoiser = Denoiser.load(package_with(package, files, work / "package").folder, options=dtype.options)
    encoder = denoiser.reference_encoder
    if encoder is None:
        raise typer.BadParameter(f"{model} takes no references: it has no encoders, or there are no adapters")
    eyes = Eyes(encoder.faces, Judge.load(), Reader.load())
    maker = Maker(denoiser, model_digest(package), files, work / "pictures", dtype.value, steps, seed)
    scores: dict[tuple[str, int], list[IdentityScore]] = {}
    left_out, said = {}, {}
    for people in (1, 2):
        said[people] = saying or (Saying.BRIEF if people == 1 else Saying.CLOTHES)
        asked = [identity_case(index, people, frames, said[people]) for index in range(stories)]
        cases, known = usable(asked, encoder)
        left_out[people] = stories - len(cases)
        made = make_all(maker, cases, known)
        scores |= {(name, people): own for name, own in measure_all(eyes, cases, made).items()}
        sheet(cases, made, output / f"quality-{people}.png")
    facts = facts_of_run("benchmarks.identity.run") | {
        "stories": stories,
        "frames": frames,
        "steps": steps,
        "seed": seed,
        "dtype": dtype.value,
        "saying": {people: each.value for people, each in said.items()},
        "absent": absent,
        "left_out": left_out,
    }
    console.print(write(output, facts, scores), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
