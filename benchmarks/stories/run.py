"""Makes a benchmark's stories through the server by one method or several, scores them, and writes what it found.

    python -m benchmarks.stories FILE_OR_FOLDER --methods none,amsa-mask [--model PACKAGE | --server ADDRESS]

FILE_OR_FOLDER has stories in the form of ConsiStory-Human; `held-out` stands for stories about people whom the built-in
model has never seen. Without --server it serves PACKAGE itself. Pictures, results.md, results.json, index.html (a
gallery) and sheet-N.png (a line a method) go to a folder; the same command goes on where it was stopped.
docs/benchmarks.md tells of metrics and weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.facts import facts_of_run
from benchmarks.latency.served import served
from benchmarks.server.scrape import Scrape, free_port
from benchmarks.stories.consistory import find_references, read_benchmark
from benchmarks.stories.discovery import CANDIDATES, Discoverer
from benchmarks.stories.gallery import write_gallery
from benchmarks.stories.generate import Maker, Outcome, Shelf
from benchmarks.stories.held_out import HELD_OUT, held_out_stories
from benchmarks.stories.known import KnownBy, known_by_files, known_by_name
from benchmarks.stories.methods import Method, evaluations, method
from benchmarks.stories.metric import Metric
from benchmarks.stories.report import Report, markdown, write
from benchmarks.stories.scores import RENDERS, Scored, cost_columns, score
from benchmarks.stories.sheet import write_sheets
from benchmarks.stories.stories import BenchmarkStory, MadeStory
from benchmarks.stories.weights import Weights, load_metrics, read_weights_file
from storyloom import ModelInfo, Settings, StoryClient, StoryloomError
from storyloom_model.package import PackageError, read_manifest
from storyloom_training.storydb.picture import render

BUILT_IN = Path("weights/storyloom-mini")
_SIZE = 128  # pixels, where the server does not say


@dataclass(frozen=True)
class Service:
    """A server, and what its pictures are known by.

    Attributes:
        address: HOST:PORT.
        model: that it serves by default.
        known_by: tells the model from others of its name, as far as its package is at hand.
        metrics: None where they are out of reach.
    """

    address: str
    client: StoryClient
    model: ModelInfo
    known_by: KnownBy
    metrics: Scrape | None = None


@contextmanager
def service(address: str | None, package: Path, device: str = "cpu") -> Iterator[Service]:
    """The server at an address, or else one of a package, on a device, that is there as long as it is needed."""
    if address is not None:
        with StoryClient(address) as client:
            model = client.get_model()
            yield Service(address, client, model, known_by_name(model.name))
        return
    read_manifest(package)
    port = free_port()
    with served(package, "--device", device, "--metrics-port", str(port)) as own, StoryClient(own) as client:
        yield Service(own, client, client.get_model(), known_by_files(package), Scrape(port))


def make_all(
    maker: Maker, methods: dict[str, Method], stories: Sequence[BenchmarkStory], console: Console
) -> dict[str, list[Outcome]]:
    """Every story by every method; story by story, so that a run that is stopped has the same ones of all methods."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in methods}
    fresh = 0

    def count() -> None:
        nonlocal fresh
        fresh += 1

    with Progress(console=console) as progress:
        task = progress.add_task("making", total=len(stories) * len(methods))
        for story in stories:
            for name, how in methods.items():
                outcome = maker.make(name, how, story, count)
                outcomes[name].append(outcome)
                if outcome.refused:
                    console.print(f"refused: {name}, {story.name}: {outcome.refused}", markup=False)
                progress.advance(task)
    console.print(f"{fresh} stories made, {len(stories) * len(methods) - fresh} were there or refused")
    return outcomes


def score_all(
    outcomes: dict[str, list[Outcome]], metrics: Sequence[Metric], defaults: Settings, console: Console
) -> dict[str, list[Scored]]:
    """Scores of every story by every method, and of the true pictures, in the model's size, where there are some."""
    size = min(defaults.width or _SIZE, defaults.height or _SIZE)
    rows: dict[str, list[Scored]] = {}
    asked = [outcome.asked for outcome in next(iter(outcomes.values()))]
    with Progress(console=console) as progress:
        task = progress.add_task("scoring", total=len(asked) * len(outcomes))
        if all(story.group is not None for story in asked):
            rows[RENDERS] = [score(Outcome(story), _true(story, size), metrics) for story in asked]
        for name, own in outcomes.items():
            rows[name] = []
            for outcome in own:
                rows[name].append(score(outcome, outcome.load(), metrics))
                progress.advance(task)
    return rows


def _true(story: BenchmarkStory, size: int) -> MadeStory:
    assert story.group is not None
    frames = range(len(story.casts))
    prompts = tuple(
        frame.prompt.format(**{name: who.description for name, who in story.story.characters.items()})
        for frame in story.story.frames
    )
    return MadeStory(story, prompts, tuple(np.asarray(render(story.group, frame, size).image) for frame in frames))


def read_stories(
    benchmark: str,
    count: int | None,
    prompts: int | None,
    people: Sequence[int],
    described: bool,
    references: Path | None,
) -> list[BenchmarkStory]:
    """The stories of a benchmark, not more than wanted, each with not more prompts than wanted.

    Raises:
        ValueError: there are none, or they are not of the form.
    """
    if benchmark == HELD_OUT:
        casts = (held_out_stories(count or 20, size, prompts or 4, described=described) for size in people)
        return list(chain.from_iterable(casts))
    stories = read_benchmark(Path(benchmark))[:count]
    if references is not None:
        stories = find_references(references, stories)
    return stories if prompts is None else [story.first(prompts) for story in stories]


def choose_weights(file: Path | None, given: dict[str, Path | None], built_in: Path | None) -> Weights:
    """The weights of a file, and those of the command line in their place.

    Raises:
        WeightsError: the file cannot be read.
    """
    listed: dict[str, Path] = {} if file is None else read_weights_file(file)
    return Weights(**(listed | {name: path for name, path in given.items() if path is not None}), built_in=built_in)


def main(
    benchmark: Annotated[str, typer.Argument(help=f"A story file, a folder of them, or {HELD_OUT}.")],
    methods: Annotated[str, typer.Option(help="Names of methods, with commas or blanks between.")] = "none,amsa-mask",
    server: Annotated[str | None, typer.Option(help="HOST:PORT of a server that runs; its default model.")] = None,
    model: Annotated[Path, typer.Option(help="Model package to serve, without --server.")] = BUILT_IN,
    out: Annotated[Path, typer.Option(help="Folder of pictures and results.")] = Path("runs/stories"),
    stories: Annotated[int | None, typer.Option(min=1, help=f"At most so many; {HELD_OUT}: 20.")] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help=f"At most so many of a story; {HELD_OUT}: 4.")] = None,
    people: Annotated[list[int], typer.Option(min=1, max=2, help=f"Characters of a story, {HELD_OUT} only.")] = [1],  # noqa: B006
    described: Annotated[bool, typer.Option(help=f"Say what people look like, {HELD_OUT} only.")] = True,
    references: Annotated[Path | None, typer.Option(help="Folder of STORY/CHARACTER.png.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps; the model's own.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, help="Guidance scale; the model's own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, the same in all methods.")] = 0,
    candidates: Annotated[int, typer.Option(min=4, max=64, help="Pictures to find a character in.")] = CANDIDATES,
    weights: Annotated[Path | None, typer.Option(help="YAML file that names clip, dino and faces.")] = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP model.")] = None,
    dino: Annotated[Path | None, typer.Option(help="Folder of DINOv2.")] = None,
    faces: Annotated[Path | None, typer.Option(help="Folder with models/PACK/*.onnx of insightface.")] = None,
    built_in: Annotated[bool | None, typer.Option(help="Read pictures as the built-in model's.")] = None,
    texts: Annotated[bool, typer.Option(help="Keep the benchmark's prompts in results.json.")] = True,
    device: Annotated[str, typer.Option(help="Torch device: of the server, if it is started, CLIP and DINO.")] = "cpu",
) -> None:
    """Makes and scores stories; see the module."""
    console = Console(soft_wrap=True)
    given = {"steps": steps, "guidance_scale": guidance}
    settings = {name: value for name, value in given.items() if value is not None}
    try:
        chosen = {name: method(name) for name in methods.replace(",", " ").split()}
        asked = read_stories(benchmark, stories, prompts, people, described, references)
        with service(server, model, device) as at:
            console.print(f"{at.model.name} at {at.address}", markup=False)
            reads = at.model.name.startswith(BUILT_IN.name) if built_in is None else built_in
            folders = {"clip": clip, "dino": dino, "faces": faces}
            sought = choose_weights(weights, folders, BUILT_IN / "faces" if reads else None)
            metrics, left_out = load_metrics(sought, out, device)
            discoverer = Discoverer(
                at.client, out / "discovered", at.known_by, evaluations(at.model.defaults), candidates, at.metrics
            )
            maker = Maker(at.client, Shelf(out, at.known_by), settings, seed, at.metrics, discoverer)
            outcomes = make_all(maker, chosen, asked, console)
        rows = score_all(outcomes, metrics, at.model.defaults, console)
    except (PackageError, StoryloomError, ValueError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from error
    columns = (*(column for metric in metrics for column in metric.columns), *cost_columns(rows))
    facts = _facts(benchmark, at.model, settings, seed, device)
    report = Report(columns, chosen, rows, left_out, facts)
    write(report, out, texts=texts)
    console.print(markdown(report), markup=False)
    written = [out / "results.json", out / "results.md", write_gallery(report, out), *write_sheets(report, out)]
    console.print(", ".join(map(str, written)))


def _facts(benchmark: str, model: ModelInfo, settings: dict[str, Any], seed: int, device: str) -> dict[str, Any]:
    facts = facts_of_run("benchmarks.stories", device)
    facts["machine"]["load_average"] = os.getloadavg()[0]
    return facts | {
        "benchmark": benchmark,
        "model": model.name,
        "settings": model.defaults.model_dump(mode="json", exclude_none=True) | settings,
        "seed": seed,
    }
