"""Makes the long stories by a server of their own, and notes when each frame came."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.long.figures import Moment
from benchmarks.quality.generate import fingerprint
from benchmarks.stories.generate import Maker, Outcome, Shelf
from benchmarks.stories.methods import Method
from benchmarks.stories.stories import BenchmarkStory
from storyloom import FrameDone, ModelInfo, OnDisconnect, Story, StoryClient, StoryEvent, StoryResult
from tests.server.processes import processor_seconds
from tests.server.serving import serving

MOMENTS = "moments.json"


class TimedClient:
    """A client that notes when each frame of its newest story came, and what the engine had used until then."""

    def __init__(self, client: StoryClient, engine: int) -> None:
        self._client = client
        self._engine = engine
        self.moments: list[Moment] = []

    def generate(
        self, story: Story, *, request_id: str | None = None, on_disconnect: OnDisconnect | None = None
    ) -> StoryResult:
        self.moments = [Moment(-1, 0.0, processor_seconds(self._engine))]

        def note(event: StoryEvent) -> None:
            if isinstance(event, FrameDone):
                used = processor_seconds(self._engine)
                self.moments.append(Moment(event.frame_index, event.finished_seconds, used))

        return self._client.generate(story, request_id=request_id, on_disconnect=on_disconnect, on_event=note)


@dataclass(frozen=True)
class LongMaker:
    """Makes stories, or finds them where an earlier run left them."""

    maker: Maker
    client: TimedClient
    model: ModelInfo

    @property
    def steps(self) -> int:
        """Of the solver."""
        return int(self.maker.settings.get("steps") or self.model.defaults.steps or 0)

    def make(self, name: str, method: Method, asked: BenchmarkStory) -> tuple[Outcome, list[Moment]]:
        """The story, and when its frames came.

        Raises:
            ValueError: the server refused it.
        """
        file = self.maker.shelf.place(name, asked) / MOMENTS
        # Told before the pictures are kept: where they are, their moments are.
        outcome = self.maker.make(name, method, asked, lambda: _write(file, self.client.moments))
        if outcome.refused:
            raise ValueError(f"{name}, {asked.name}: {outcome.refused}")
        return outcome, [Moment(**moment) for moment in json.loads(file.read_text())]


@contextmanager
def long_maker(package: Path, folder: Path, settings: dict[str, Any]) -> Iterator[LongMaker]:
    """A server of a package with one compute thread, as long as it is needed."""
    with (
        tempfile.TemporaryDirectory() as state,
        serving(Path(state), package, backend=None) as server,
        StoryClient(server.address) as client,
    ):
        timed = TimedClient(client, server.engine_pid)
        maker = Maker(timed, Shelf(folder, fingerprint(package)), settings)
        yield LongMaker(maker, timed, client.get_model())


def _write(file: Path, moments: Sequence[Moment]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([asdict(moment) for moment in moments]) + "\n")
