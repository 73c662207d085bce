"""Scores a model package: `python -m benchmarks.quality.run --model weights/storyloom-mini`.

Makes the same stories from the same seeds without cross-frame attention, with it, and with it after training with the
mask loss; reads every picture; and prints a table beside the true renders of the same stories, which bound what the
reader can measure. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.facts import facts_of_run
from benchmarks.quality import metrics, report
from benchmarks.quality.evaluate import RENDERS, Result, document, make_stories, measure, render_stories
from benchmarks.quality.generate import SETTINGS, PictureStore, Sampling, Setting, fingerprint
from benchmarks.quality.network import WEIGHTS, Reader
from benchmarks.quality.stories import BenchStory, bench_story
from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.package import ModelPackage, PackageError

SHOWN = 4  # stories on the contact sheet


class Dtype(StrEnum):
    """The number type that the model computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def options(self) -> ExecutionOptions:
        return ExecutionOptions(dtype="float32" if self is Dtype.float32 else "bfloat16")


def choose(names: str, package: ModelPackage) -> list[Setting]:
    """The settings named in a comma-separated list.

    Raises:
        ValueError: there is no such setting.
        PackageError: the package lacks the adapter of a setting.
    """
    chosen = []
    for name in names.split(","):
        if name not in SETTINGS:
            raise ValueError(f"there is no setting {name!r}; choose from {','.join(SETTINGS)}")
        adapter = SETTINGS[name].adapter
        if adapter is not None:
            package.adapter_file(adapter)
        chosen.append(SETTINGS[name])
    return chosen


def reader_record(weights: Path) -> dict[str, Any]:
    """How well the reader reads, as measured when it was trained; empty where nobody measured it."""
    file = weights.with_suffix(".json")
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def write(output: Path, name: str, found: dict[str, Any], stories: list[BenchStory], results: dict[str, Result]) -> str:
    """Writes NAME.json, NAME.png and quality.md; returns the table."""
    output.mkdir(parents=True, exist_ok=True)
    rows = {setting: metrics.summarise(result.scores) for setting, result in results.items()}
    table = report.table(rows)
    text = json.dumps(document(results, rows, stories, found), indent=1)
    (output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (output / "quality.md").write_text(report.page(name, table, found), encoding="utf-8")
    sheet = report.contact_sheet(stories[:SHOWN], {setting: result.pictures for setting, result in results.items()})
    sheet.save(output / f"{name}.png")
    return f"{table}\n\n{report.summary_line(rows)}"


def main(
    model: Annotated[Path, typer.Option(help="Folder of a model package.")] = Path("weights/storyloom-mini"),
    stories: Annotated[int, typer.Option(min=1, help="Stories to make.")] = 60,
    frames: Annotated[int, typer.Option(min=2, max=10, help="Frames of each story.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Number type of the model.")] = Dtype.float32,
    rows: Annotated[int, typer.Option(min=1, help="UNet rows per step; a story takes two a frame.")] = 48,
    settings: Annotated[str, typer.Option(help="Settings to compare, separated by commas.")] = ",".join(SETTINGS),
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    reader: Annotated[Path, typer.Option(help="Weights of the attribute reader.")] = WEIGHTS,
    cache: Annotated[Path, typer.Option(help="Where made pictures are kept.")] = Path("runs/quality"),
    output: Annotated[Path, typer.Option(help="Where results are written.")] = Path("benchmarks/results/quality"),
    name: Annotated[str, typer.Option(help="Name of the result; today's date unless given.")] = "",
) -> None:
    """Scores a model package and writes NAME.json, NAME.png and quality.md."""
    console = Console()
    try:
        package = ModelPackage.load(model)
        chosen, eye = choose(settings, package), Reader.load(reader)
    except (PackageError, FileNotFoundError, ValueError) as error:
        console.print(f"[red]{error}")
        raise typer.Exit(2) from error
    defaults = package.manifest.defaults
    sampling = Sampling(steps, seed, defaults.guidance_scale, defaults.solver, defaults.width, defaults.height)
    cast = [bench_story(index, frames) for index in range(stories)]
    results = {RENDERS: measure(eye, cast, render_stories(cast, min(defaults.width, defaults.height)))}
    store = PictureStore(cache, fingerprint(model), str(dtype))
    denoiser = Denoiser.load(model, device, dtype.options)
    seconds: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for setting in chosen:
            started = time.monotonic()
            pictures = make_stories(denoiser, store, sampling, setting, cast, rows, progress)
            seconds[setting.name] = round(time.monotonic() - started, 1)
            results[setting.name] = measure(eye, cast, pictures)
    found = facts_of_run("benchmarks.quality.run", device) | {
        "model": {"name": package.manifest.name, "fingerprint": store.model},
        "dtype": str(dtype),
        "sampling": sampling.as_dict(),
        "seconds": seconds,
        "reader": reader_record(reader),
    }
    console.print(write(output, name or found["date"], found, cast, results), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
