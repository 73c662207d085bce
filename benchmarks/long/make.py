"""Makes the long stories by a server of their own, and notes when each frame came.

The server keeps its state beside the pictures, so that a run that was stopped in the middle of a story goes on there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.long.figures import START, Moment
from benchmarks.stories.generate import RECORD, Maker, Outcome, Shelf
from benchmarks.stories.known import known_by_files
from benchmarks.stories.methods import Method
from benchmarks.stories.stories import BenchmarkStory
from storyloom import (
    Accepted,
    FrameDone,
    ModelInfo,
    OnDisconnect,
    Story,
    StoryClient,
    StoryEvent,
    StoryResult,
    StoryState,
)
from tests.server.processes import processor_seconds
from tests.server.serving import serving


class TimedClient:
    """A client that notes when the frames of a story came, and what the engine had used until then.

    Args:
        client: of the server, which has nothing else to do.
        engine: process id of the engine.
        folder: of the notes, a file a story, by its request id, with a line a moment.
    """

    def __init__(self, client: StoryClient, engine: int, folder: Path) -> None:
        self.client = client
        self._engine = engine
        self._folder = folder
        self._run = time.time_ns()

    def generate(
        self, story: Story, *, request_id: str | None = None, on_disconnect: OnDisconnect | None = None
    ) -> StoryResult:
        """As that of `StoryClient`. Frames that an earlier run has noted come again at once, and stay as noted.

        What an earlier run left unfinished of another story, or of this one otherwise, is cancelled: the server would
        go on with it beside this one, and its time would count.
        """
        if request_id is None:
            return self.client.generate(story, on_disconnect=on_disconnect)
        noted = {moment.frame for moment in self.moments(request_id)}
        self._note(request_id, START, 0.0)

        def note(event: StoryEvent) -> None:
            if isinstance(event, Accepted):
                self._cancel_all_but(event.story_id)
            if isinstance(event, FrameDone) and event.frame_index not in noted:
                self._note(request_id, event.frame_index, event.finished_seconds)

        return self.client.generate(story, request_id=request_id, on_disconnect=on_disconnect, on_event=note)

    def moments(self, request_id: str) -> list[Moment]:
        """What is noted of a story."""
        file = self._file(request_id)
        return [Moment(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def _cancel_all_but(self, story_id: str) -> None:
        for state in (StoryState.QUEUED, StoryState.RUNNING):
            for story in self.client.list_stories(state=state):
                if story.story_id != story_id:
                    self.client.cancel_story(story.story_id)

    def _note(self, request_id: str, frame: int, seconds: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        moment = Moment(frame, seconds, processor_seconds(self._engine), self._run)
        with self._file(request_id).open("a") as file:
            file.write(json.dumps(asdict(moment)) + "\n")

    def _file(self, request_id: str) -> Path:
        return self._folder / f"{request_id}.jsonl"


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
        outcome = self.maker.make(name, method, asked, lambda: None)
        if outcome.folder is None:
            raise ValueError(f"{name}, {asked.name}: {outcome.refused}")
        record = json.loads((outcome.folder / RECORD).read_text())
        return outcome, self.client.moments(record["request"])


@contextmanager
def long_maker(package: Path, folder: Path, state: Path, settings: dict[str, Any]) -> Iterator[LongMaker]:
    """A server of a package with one compute thread, as long as it is needed.

    Args:
        folder: of the pictures.
        state: of the server; one that runs has it for itself.
        settings: what all methods share.

    Raises:
        SystemExit: the server stopped before it was ready.
    """
    state.mkdir(parents=True, exist_ok=True)
    (state / "ready").unlink(missing_ok=True)
    with serving(state, package, backend=None, wait=False) as server:
        while not server.ready_file.exists():  # however long that takes on a busy machine
            if server.process.poll() is not None:
                raise SystemExit(f"the server stopped with exit code {server.process.returncode}:\n{server.log}")
            time.sleep(0.1)
        with StoryClient(server.address) as client:
            timed = TimedClient(client, server.engine_pid, folder / "moments")
            maker = Maker(timed, Shelf(folder, known_by_files(package)), settings)
            yield LongMaker(maker, timed, client.get_model())
