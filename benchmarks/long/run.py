"""Makes long stories by one method or several and says whether the person and the cost of a frame stay the same.

Each story shows one held-out person in as many scenes and actions as it has frames; every 20 frames have every scene
once. Faces are found by the package's detector and told apart by the judge, a recogniser that no adapter has seen. A
run that was stopped goes on with the same command: stories that are there are not made again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from benchmarks.long.figures import Moment, agreement, course, window_costs
from benchmarks.long.make import long_maker
from benchmarks.long.report import PAGE, StoryFigures, write
from benchmarks.long.stories import BLOCK, PEOPLE, long_stories
from benchmarks.quality.judge import Judge
from benchmarks.server import machine
from benchmarks.stories.built_in import JudgedFaces
from benchmarks.stories.faces import FaceFinder, picture_of
from benchmarks.stories.generate import Outcome
from benchmarks.stories.methods import method
from benchmarks.stories.similarity import Vectors
from storyloom import StoryloomError, StoryResult
from storyloom_model.identity.encoders.faces import FaceEncoder
from storyloom_model.manifest import Limits
from storyloom_model.package import PackageError, read_manifest
from storyloom_model.windows import plan_windows

BUILT_IN = Path("weights/storyloom-mini")


def measure(outcome: Outcome, moments: Sequence[Moment], finder: FaceFinder, limits: Limits) -> StoryFigures:
    """The figures of a story that was made."""
    made = outcome.load()
    assert made is not None  # refusals are errors here
    faces = [finder.find(picture)[:1] for picture in made.pictures]
    (data,) = outcome.asked.references.values()
    reference = finder.find(picture_of(data))[:1]
    frames = range(len(faces))
    first = frames[:BLOCK]
    blocks = [frames[start : start + BLOCK] for start in range(0, len(faces), BLOCK)]
    anchors = limits.window_anchors if made_together(outcome) else 0
    costs = window_costs(plan_windows(outcome.asked.casts, limits.window_frames, anchors), moments)
    return StoryFigures(
        name=outcome.asked.name,
        identity=agreement(faces, first, frames[-BLOCK:]),
        blocks=[agreement(faces, first, block) for block in blocks],
        to_reference=[_to_reference([faces[frame] for frame in block], reference) for block in blocks],
        windows=costs,
        processor=course(costs, [window.processor for window in costs]),
        wall=course(costs, [window.seconds for window in costs]),
    )


def made_together(outcome: Outcome) -> bool:
    """Whether frames see each other; where they do not, windows have no anchors."""
    assert outcome.folder is not None
    return StoryResult.load(outcome.folder).settings.consistency.enabled is not False


def _to_reference(faces: Sequence[Vectors], reference: Vectors) -> float | None:
    found = [face for face in faces if len(face)]
    return float(np.mean(np.concatenate(found) @ reference[0])) if found and len(reference) else None


def main(
    methods: Annotated[str, typer.Option(help="Names of methods, separated by commas; see benchmarks.stories.")] = (
        "amsa-mask,storynizor,identitystory"
    ),
    model: Annotated[Path, typer.Option(help="Model package to serve; the built-in model or one like it.")] = BUILT_IN,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each story.")] = 200,
    stories: Annotated[int, typer.Option(min=1, max=len(PEOPLE), help="Stories, each of another person.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps; the model's own.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of pictures.")] = Path("runs/long"),
    results: Annotated[Path, typer.Option(help="Folder of figures.")] = Path("benchmarks/results/long"),
) -> None:
    """Makes and measures long stories; see the module."""
    console = Console(soft_wrap=True)
    command = shlex.join(["python", "-m", "benchmarks.long", *sys.argv[1:]])
    try:
        chosen = {name: method(name) for name in methods.split(",")}
        asked = long_stories(stories, frames)
        limits = read_manifest(model).limits
        finder = JudgedFaces(FaceEncoder.load(BUILT_IN / "faces"), Judge.load())
        # Several methods may be under way at once, each by a command and a server of its own.
        state = out / "servers" / methods.replace(":", "-")
        with long_maker(model, out, state, {} if steps is None else {"steps": steps}) as maker:
            for name, how in chosen.items():
                found = []
                for story in asked:
                    console.print(f"{name}, {story.name}", markup=False)
                    found.append(measure(*maker.make(name, how, story), finder, limits))
                facts = {
                    "about": how.about, "block": BLOCK, "frames": frames, "steps": maker.steps,
                    "command": command, "date": datetime.now(UTC).date().isoformat(), "machine": machine.facts(),
                }  # fmt: skip
                write(name, found, facts, results)
    except (PackageError, StoryloomError, ValueError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from error
    console.print((results / PAGE).read_text(), markup=False)
