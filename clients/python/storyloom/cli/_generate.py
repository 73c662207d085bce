"""Makes several stories at once and writes them to folders."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from storyloom._async_client import AsyncStoryClient
from storyloom._errors import StoryloomError
from storyloom._events import Preview
from storyloom._operations import Wish
from storyloom._result import StoryCollector, StoryResult
from storyloom._story import Story
from storyloom._story_file import StoryFile
from storyloom.cli._connection import Connection
from storyloom.cli._display import Display

# More stories than a server runs at once would only wait in its queue and crowd out others.
_AT_ONCE = 8


@dataclass(frozen=True)
class Job:
    """A story to make.

    :ivar name: unique among the jobs; shown to people.
    :ivar story: with the options of the command line applied.
    :ivar folder: receives the result.
    """

    name: str
    file: StoryFile
    story: Story
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a result, or the error that ended it."""

    job: Job
    result: StoryResult | None = None
    error: Exception | None = None


def plan_jobs(files: Iterable[tuple[StoryFile, Story]], out: Path) -> list[Job]:
    """Gives each story a folder of its own under `out`, named after its title or else its file."""
    jobs: list[Job] = []
    taken: set[str] = set()
    for file, story in files:
        base = slug(story.title) or slug(Path(file.path).stem) or "story"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        jobs.append(Job(name, file, story, out / name))
    return jobs


def slug(text: str) -> str:
    """Returns `text` as a folder name: lower case, words joined by hyphens, at most 80 characters."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:80].rstrip("-")


async def run_jobs(
    jobs: Sequence[Job],
    connection: Connection,
    wish: Wish,
    *,
    timeout: float | None,  # noqa: ASYNC109 - sent to the server as the call's deadline
    keep_previews: bool,
    display: Display,
) -> list[Outcome]:
    """Makes all stories, several at once, and returns what became of each, in order.

    One that fails leaves the others alone. Cancelling the task cancels every story on the server.
    """
    gate = asyncio.Semaphore(_AT_ONCE)

    async def run(job: Job, client: AsyncStoryClient) -> Outcome:
        async with gate:
            display.start(job.name, len(job.story.frames))
            try:
                result = await _make(job, client, wish, display, keep_previews=keep_previews)
                await asyncio.to_thread(result.save, job.folder)
            except (StoryloomError, OSError) as error:
                display.fail(job.name)
                return Outcome(job, error=error)
            return Outcome(job, result=result)

    async with connection.async_client(timeout=timeout) as client:
        return list(await asyncio.gather(*(run(job, client) for job in jobs)))


async def _make(
    job: Job, client: AsyncStoryClient, wish: Wish, display: Display, *, keep_previews: bool
) -> StoryResult:
    collector = StoryCollector(job.story)
    events = client.stream(job.story, request_id=wish.request_id, priority=wish.priority, deadline=wish.deadline)
    async with aclosing(events):
        async for event in events:
            collector.add(event)
            display.event(job.name, event)
            if keep_previews and isinstance(event, Preview):
                await asyncio.to_thread(_keep, event, job.folder / "previews")
    return collector.result()


def _keep(preview: Preview, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"frame-{preview.frame_index + 1:02}-step-{preview.step:03}.png"
    (folder / name).write_bytes(preview.picture.png)
