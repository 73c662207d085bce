"""Does Iterative Identity Discovery find somebody? Candidates through a server, then stories with what was found.

    python -m benchmarks.identity.discovery [--people 6] [--candidates 32] [--held-out 8]

For each person: the server makes candidates of a terse description and finds an identity in them (DiscoverCharacter);
candidates with another seed are held out; stories are made by text alone, with the identity, and with re-denoising,
from the same noise. The server keeps what it made under --work, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console

from benchmarks.facts import facts_of_run
from benchmarks.identity.cases import identity_case
from benchmarks.identity.discovered import (
    FILTERS,
    STRANGERS,
    Agreement,
    HeldOut,
    Mixed,
    agreement,
    among_strangers,
    compare,
    cross_validated,
    spread,
    terse,
)
from benchmarks.identity.discovery_report import write
from benchmarks.latency.served import served
from benchmarks.quality.judge import Judge
from benchmarks.stories.built_in import JudgedFaces
from benchmarks.stories.faces import FaceFinder, PackFaces
from benchmarks.stories.known import known_by_files
from benchmarks.stories.similarity import Vectors
from benchmarks.stories.stories import Pixels
from storyloom import Character, CharacterRecord, FailedPrecondition, Settings, Solver, Story, StoryClient
from storyloom_model.identity.encoders.faces import FaceEncoder

NAME = "mia"
STYLE = "a portrait of"
FRAMES = (
    f"a portrait of {{{NAME}}}, standing in a park",
    f"a portrait of {{{NAME}}}, reading a book in a library",
    f"a portrait of {{{NAME}}}, waving on a beach",
    f"a portrait of {{{NAME}}}, drinking tea in a kitchen",
)
TEXT, IDENTITY, REDENOISED = "text alone", "identity", "identity, re-denoised"
RECOGNISER, JUDGE = "recogniser", "judge"
_CANDIDATES_SEED, _HELD_OUT_SEED, _STORY_SEED = 1_000, 2_000, 3_000


@dataclass(frozen=True)
class Found:
    """What is known of one person. Keys of mappings are embeddings; of ``stories`` settings, then embeddings.

    Attributes:
        compared: candidates that show a face.
        kept: those that the server's filter left, among the candidates' numbers.
        alike: mean cosine over all pairs of candidates.
        held_out: candidates of another seed, of which no mean knows.
        folds: the same by cross-validation over all candidates.
        candidates: all of them, in each embedding.
    """

    index: int
    description: str
    compared: int
    kept: tuple[int, ...]
    alike: dict[str, float]
    held_out: dict[str, list[HeldOut]]
    folds: dict[str, list[HeldOut]]
    stories: dict[str, dict[str, Agreement]]
    pictures: tuple[list[Pixels], ...]
    candidates: dict[str, Vectors]

    def told(self) -> dict[str, Any]:
        """All but pictures and embeddings."""
        return {name: value for name, value in asdict(self).items() if name not in ("pictures", "candidates")}


class Eyes:
    """Finds the faces of pictures and embeds them in two ways."""

    def __init__(self, faces: FaceEncoder) -> None:
        self._finders: dict[str, FaceFinder] = {RECOGNISER: PackFaces(faces), JUDGE: JudgedFaces(faces, Judge.load())}

    def faces(self, pictures: Sequence[Pixels]) -> dict[str, list[Vectors]]:
        """Of each picture, by embedding."""
        return {name: [finder.find(picture) for picture in pictures] for name, finder in self._finders.items()}

    def prominent(self, pictures: Sequence[Pixels]) -> dict[str, Vectors]:
        """The most prominent faces of the pictures that have one, in the same order in both embeddings."""
        return {name: np.stack([one[0] for one in found if len(one)]) for name, found in self.faces(pictures).items()}


@dataclass(frozen=True)
class Service:
    """Makes pictures through a server that remembers them: what was made before is found by its request id.

    Attributes:
        model: tells this model from others.
        settings: of all pictures.
    """

    client: StoryClient
    model: str
    settings: Settings

    def discover(self, description: str, candidates: int, seed: int) -> CharacterRecord:
        """A character that is found, with how."""

        def ask() -> CharacterRecord:
            return self.client.discover_character(
                NAME,
                description,
                style=STYLE,
                candidates=candidates,
                seed=seed,
                settings=self.settings,
                request_id=self._key("discovery", description, candidates, seed),
            )

        found = ask()
        if not found.discovery:  # An earlier run has heard how. The candidates are still there.
            self.client.delete_character(found.character_id)
            found = ask()
        return found

    def candidates(self, description: str, count: int, seed: int) -> list[Pixels]:
        """Pictures as a discovery makes them."""
        frames = [f"{{{NAME}}}"] * count
        return self.story(Story(style=STYLE, characters={NAME: description}, frames=frames), seed)

    def story(self, story: Story, seed: int, **settings: Any) -> list[Pixels]:
        """The pictures of a story; each frame is made on its own."""
        changes = self.settings.model_dump(exclude_unset=True) | settings
        asked = story.with_settings(**changes, seed=seed, consistency={"enabled": False})
        result = self.client.generate(asked, request_id=self._key(asked.model_dump_json()))
        return [np.asarray(frame.convert("RGB")) for frame in result.frames]

    def pictures(self, story_id: str, frames: Iterable[int]) -> list[Pixels]:
        """Some frames of a story."""
        made = self.client.wait(story_id).frames
        return [np.asarray(made[frame].convert("RGB")) for frame in frames]

    def _key(self, *parts: object) -> str:
        text = json.dumps([self.model, self.settings.model_dump(mode="json"), *map(str, parts)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def measure(service: Service, eyes: Eyes, index: int, description: str, candidates: int, held_out: int) -> Found:
    """Everything of one person.

    Raises:
        FailedPrecondition: too few candidates show a face.
    """
    record = service.discover(description, candidates, _CANDIDATES_SEED + index)
    (loop,) = record.discovery
    shown = service.pictures(loop.story_id, loop.compared)
    seen = eyes.prominent(shown)
    others = eyes.prominent(service.candidates(description, held_out, _HELD_OUT_SEED + index))
    everybody = {name: np.concatenate([rows, others[name]]) for name, rows in seen.items()}
    kept = [loop.compared.index(frame) for frame in loop.kept]
    made = _stories(service, description, record.character_id, _STORY_SEED + index)
    identity = {name: rows[kept].mean(0) for name, rows in seen.items()}
    faces = {setting: eyes.faces(pictures) for setting, pictures in made.items()}
    return Found(
        index=index,
        description=description,
        compared=len(loop.compared),
        kept=loop.kept,
        alike={name: round(spread(rows), 4) for name, rows in seen.items()},
        held_out={name: compare(rows, kept, others[name]) for name, rows in seen.items()},
        folds=cross_validated(everybody, RECOGNISER),
        stories={
            setting: {name: agreement(each, identity[name]) for name, each in own.items()}
            for setting, own in faces.items()
        },
        pictures=([shown[place] for place in kept][: len(FRAMES)], *made.values()),
        candidates=everybody,
    )


def _stories(service: Service, description: str, character_id: str, seed: int) -> dict[str, list[Pixels]]:
    """The frames by setting, from the same noise."""
    told = Story(characters={NAME: description}, frames=FRAMES)
    known = Story(characters={NAME: Character(description=description, id=character_id)}, frames=FRAMES)
    return {
        TEXT: service.story(told, seed),
        IDENTITY: service.story(known, seed),
        REDENOISED: service.story(known, seed, redenoising=True),
    }


def mixtures(people: Sequence[dict[str, Vectors]]) -> list[Mixed]:
    """With strangers among the candidates, where there are other people to take them from."""
    if len(people) < 2:
        return []
    return [among_strangers(people, RECOGNISER, name, share) for name in FILTERS for share in STRANGERS]


def sheet(people: Sequence[Found]) -> Image.Image:
    """A line for each person: kept candidates, then the frames of each setting."""
    size = people[0].pictures[0][0].shape[0]
    rows = []
    for one in people:
        blank = np.full((size, size, 3), 255, np.uint8)
        groups = [[*group, *[blank] * (len(FRAMES) - len(group))] for group in one.pictures]
        gap = np.full((size, 12, 3), 255, np.uint8)
        rows.append(np.concatenate([part for group in groups for part in (*group, gap)], axis=1))
    return Image.fromarray(np.concatenate(rows))


def main(
    model: Annotated[Path, typer.Option(help="Model package with encoders and an identity adapter.")] = Path(
        "weights/storyloom-mini"
    ),
    people: Annotated[int, typer.Option(min=1, help="Held-out people.")] = 12,
    candidates: Annotated[int, typer.Option(min=4, max=64, help="Candidates of each.")] = 32,
    held_out: Annotated[int, typer.Option(min=2, help="More candidates, that no mean knows.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps.")] = 10,
    solver: Annotated[Solver, typer.Option(help="Solver.")] = Solver.UNIPC,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the server's engine.")] = 1,
    work: Annotated[Path, typer.Option(help="Where the server keeps what it made.")] = Path("runs/discovery-figure"),
    output: Annotated[Path, typer.Option(help="Where results are written.")] = Path("benchmarks/results/identity"),
) -> None:
    """Measures person by person; writes discovery.json, discovery.md and pictures after each."""
    # A run that is told to stop stops the server that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    torch.set_num_threads(threads)
    console = Console(soft_wrap=True)
    eyes = Eyes(FaceEncoder.load(model / "faces"))
    facts = facts_of_run("benchmarks.identity.discovery") | {
        "model": {"name": model.name, "known_by": known_by_files(model)(Settings())},
        "candidates": candidates,
        "held_out": held_out,
        "style": STYLE,
        "frames": FRAMES,
        "left_out": [],
        "steps": steps,
        "solver": solver.value,
    }
    known: list[Found] = []
    page = "nobody was found"
    state = ("--threads", str(threads), "--state-folder", str(work / "state"))
    with served(model, *state) as address, StoryClient(address) as client:
        service = Service(client, str(facts["model"]), Settings(steps=steps, solver=solver))
        for index in range(people):
            description = terse(identity_case(index, 1, len(FRAMES)).group.cast[0])
            console.print(f"{index + 1} of {people}: {description}", markup=False)
            try:
                known.append(measure(service, eyes, index, description, candidates, held_out))
            except FailedPrecondition:
                facts["left_out"].append(description)
                continue
            people_told, mixed = [one.told() for one in known], mixtures([one.candidates for one in known])
            page = write(output, facts, people_told, mixed, sheet(known))
    console.print(page, markup=False)


if __name__ == "__main__":
    typer.run(main)
