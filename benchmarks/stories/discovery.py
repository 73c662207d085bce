"""Finds characters that have no reference, from their descriptions alone (IdentityStory's first half), by a server."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.server.scrape import Scrape
from benchmarks.stories.cost import DiscoveryCost, unet_rows
from benchmarks.stories.known import KnownBy
from storyloom import Character, CharacterRecord, Settings, Story

CANDIDATES = 16


class DiscoveryClient(Protocol):
    """What is used of a `StoryClient`."""

    def discover_character(
        self, name: str, description: str, *, style: str, candidates: int, seed: int, request_id: str
    ) -> CharacterRecord: ...


@dataclass(frozen=True)
class Wish:
    """A character to be found. The same wish finds the same character."""

    name: str
    description: str
    style: str
    candidates: int
    seed: int


@dataclass(frozen=True)
class Discoverer:
    """Finds characters by a server that has nothing else to do.

    A server that is gone takes its characters along, so that they are found again for a story that is yet to be made.
    What finding them cost is kept in a folder, since a server that knows a character already says nothing of it.

    Attributes:
        folder: of the costs.
        known_by: what tells this model from others.
        evaluations: UNet evaluations of one candidate, for servers whose metrics are out of reach.
    """

    client: DiscoveryClient
    folder: Path
    known_by: KnownBy
    evaluations: float
    candidates: int = CANDIDATES
    metrics: Scrape | None = None

    def wishes(self, story: Story) -> dict[str, Wish]:
        """Those of the cast that nobody has shown, by name; their candidates have the story's style and seed."""
        return {
            name: Wish(name, one.description, story.style, self.candidates, story.settings.seed or 0)
            for name, one in story.characters.items()
            if not one.references and not one.id
        }

    def cast(self, story: Story, wishes: Mapping[str, Wish]) -> tuple[Story, DiscoveryCost]:
        """The story with the characters that were found, and what they cost.

        Raises:
            ServerError: the server refuses a wish, or its candidates show too little.
        """
        found, costs = {}, []
        for name, wish in wishes.items():
            character_id, cost = self._find(wish)
            found[name] = Character(id=character_id, description=wish.description)
            costs.append(cost)
        total = DiscoveryCost(sum(cost.evaluations for cost in costs), sum(cost.seconds for cost in costs))
        return story.model_copy(update={"characters": {**story.characters, **found}}), total

    def _find(self, wish: Wish) -> tuple[str, DiscoveryCost]:
        request_id = self._request_id(wish)
        before, began = unet_rows(self.metrics), time.monotonic()
        character = self.client.discover_character(
            wish.name,
            wish.description,
            style=wish.style,
            candidates=wish.candidates,
            seed=wish.seed,
            request_id=request_id,
        )
        seconds, after = time.monotonic() - began, unet_rows(self.metrics)
        counted = self.evaluations * wish.candidates if before is None or after is None else after - before
        return character.character_id, self._kept(request_id, DiscoveryCost(counted, seconds))

    def _request_id(self, wish: Wish) -> str:
        known_by = self.known_by(Settings(identity_adapter="none"))
        text = json.dumps([known_by, asdict(wish)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _kept(self, request_id: str, cost: DiscoveryCost) -> DiscoveryCost:
        """The cost of the first time."""
        file = self.folder / f"{request_id}.json"
        if file.exists():
            return DiscoveryCost(**json.loads(file.read_text()))
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(cost)) + "\n")
        os.replace(partial, file)
        return cost
