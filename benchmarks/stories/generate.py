"""Makes the stories through a server, one at a time, and keeps them, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.server.scrape import Scrape
from benchmarks.stories.cost import Cost, DiscoveryCost, unet_rows
from benchmarks.stories.discovery import Discoverer, Wish
from benchmarks.stories.known import KnownBy
from benchmarks.stories.methods import Method, evaluations
from benchmarks.stories.processor import processor_seconds
from benchmarks.stories.stories import BenchmarkStory, MadeStory
from storyloom import (
    FailedPrecondition,
    InvalidRequest,
    OnDisconnect,
    Story,
    StoryCancelled,
    StoryFailed,
    StoryFileError,
    StoryResult,
)
from storyloom_model.noise import frame_seed

RECORD = "benchmark.json"


class Client(Protocol):
    """What is used of a `StoryClient`."""

    def generate(
        self, story: Story, *, request_id: str | None = None, on_disconnect: OnDisconnect | None = None
    ) -> StoryResult: ...


@dataclass(frozen=True)
class Outcome:
    """What became of a story: the folder of its pictures and its cost, or why the server refused it."""

    asked: BenchmarkStory
    folder: Path | None = None
    cost: Cost | None = None
    refused: str = ""

    def load(self) -> MadeStory | None:
        """The story with its pictures, for those who score it; None where it was refused."""
        if self.folder is None:
            return None
        result = StoryResult.load(self.folder)
        pictures = tuple(np.asarray(frame.convert("RGB")) for frame in result.frames)
        files = tuple(sorted(self.folder.glob("frame-*.png")))
        return MadeStory(self.asked, result.prompts, pictures, files)


@dataclass(frozen=True)
class Shelf:
    """Results by method and story: `folder/METHOD/STORY/`, as `StoryResult.save` writes them, and `benchmark.json`.

    Attributes:
        known_by: what tells this model from others; what another one made is not taken for it.
    """

    folder: Path
    known_by: KnownBy

    def place(self, method: str, story: BenchmarkStory) -> Path:
        """The folder of a story's pictures."""
        return self.folder / re.sub(r"[^\w.=-]", "-", method) / story.name

    def get(self, method: str, asked: BenchmarkStory, key: str) -> Outcome | None:
        """The result that is there, complete, of exactly the request of this key; or None."""
        place = self.place(method, asked)
        try:
            record = json.loads((place / RECORD).read_text(encoding="utf-8"))
            if record["request"] != key:
                return None
            StoryResult.load(place)
            return Outcome(asked, place, Cost.of(record["cost"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StoryFileError):
            return None

    def put(self, method: str, asked: BenchmarkStory, key: str, result: StoryResult, cost: Cost) -> Outcome:
        """Keeps a result. The record is written last: where it is, everything is."""
        place = self.place(method, asked)
        (place / RECORD).unlink(missing_ok=True)
        result.save(place)
        partial = place / f"{RECORD}.partial"
        partial.write_text(json.dumps({"request": key, "cost": asdict(cost)}, indent=2) + "\n")
        os.replace(partial, place / RECORD)
        return Outcome(asked, place, cost)

    def key(self, story: Story, wishes: Mapping[str, Wish] | None = None) -> str:
        """Says in 32 letters what is asked of which model, and which characters are to be found before."""
        cast = {name: one.references for name, one in story.characters.items()}
        pictures = [reference.picture for references in cast.values() for reference in references]
        # What is not asked for is left out: pictures stay good when a setting comes to be that they do without.
        told = story.model_dump(mode="json", exclude_none=True, exclude={"characters": {"__all__": {"references"}}})
        told["references"] = [hashlib.sha256(picture).hexdigest() for picture in pictures]
        if wishes:
            told["discovery"] = {name: asdict(wish) for name, wish in wishes.items()}
        text = json.dumps([self.known_by(story.settings), told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Maker:
    """Makes stories by a server that has nothing else to do.

    Attributes:
        settings: what all methods share, as `Story.with_settings` takes it.
        seed: of the noise, which is the same in all methods.
        metrics: of the server; None where they are out of reach.
        discoverer: finds characters for methods that want it; without one they are asked for as they are.
    """

    client: Client
    shelf: Shelf
    settings: dict[str, Any]
    seed: int = 0
    metrics: Scrape | None = None
    discoverer: Discoverer | None = None

    def make(self, name: str, method: Method, asked: BenchmarkStory, on_made: Callable[[], None]) -> Outcome:
        """The story by a method: from the shelf if it is there, else made; `on_made` is told of the latter."""
        story = self._request(method, asked)
        wishes = self._wishes(method, story)
        key = self.shelf.key(story, wishes)
        kept = self.shelf.get(name, asked, key)
        if kept is not None:
            return kept
        try:
            story, discovery = self._cast(story, wishes)
            before = self._used()
            result = self._generate(story, key)
        except (InvalidRequest, FailedPrecondition) as error:
            return Outcome(asked, refused=str(error))
        on_made()
        return self.shelf.put(name, asked, key, result, self._cost(result, before, discovery))

    def _wishes(self, method: Method, story: Story) -> dict[str, Wish]:
        return self.discoverer.wishes(story) if method.discovers and self.discoverer is not None else {}

    def _cast(self, story: Story, wishes: Mapping[str, Wish]) -> tuple[Story, DiscoveryCost | None]:
        return self.discoverer.cast(story, wishes) if wishes and self.discoverer is not None else (story, None)

    def _request(self, method: Method, asked: BenchmarkStory) -> Story:
        digest = hashlib.sha256(asked.name.encode()).digest()
        seed = frame_seed(self.seed, int.from_bytes(digest[:4], "big"))
        settings = {"preview_interval": 0, **self.settings, "seed": seed}
        return asked.asked(references=method.references).with_settings(**settings).with_settings(**method.settings)

    def _generate(self, story: Story, key: str) -> StoryResult:
        """Makes a story; one that a killed run began on a server that goes on is joined, not made twice."""
        try:
            return self.client.generate(story, request_id=key, on_disconnect=OnDisconnect.FINISH)
        except (StoryFailed, StoryCancelled):
            # Perhaps that of an earlier run, which the id stands for as long as the server remembers it.
            return self.client.generate(story, on_disconnect=OnDisconnect.FINISH)

    def _used(self) -> tuple[float | None, float | None]:
        """UNet rows and processor seconds of the server up to now; None for what is out of reach."""
        return unet_rows(self.metrics), processor_seconds() if self.metrics is not None else None

    def _cost(
        self, result: StoryResult, before: tuple[float | None, float | None], discovery: DiscoveryCost | None
    ) -> Cost:
        frames, timings = len(result.pictures), result.timings
        seconds = (timings.encode + timings.denoise + timings.decode) / frames
        rows, processor = (
            None if now is None or then is None else (now - then) / frames
            for now, then in zip(self._used(), before, strict=True)
        )
        if rows is None:
            return Cost(evaluations(result.settings), "settings", seconds, discovery, processor)
        return Cost(rows, "server", seconds, discovery, processor)
