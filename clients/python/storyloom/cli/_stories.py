"""Commands on stories that the server has: follow, show, fetch, cancel, extend, redo a frame."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from storyloom._client import StoryClient
from storyloom._core import LEAVING_SECONDS
from storyloom._errors import Problem, ServerError, StoryFileError, StoryTimeout
from storyloom._operations import Wish
from storyloom._records import StoryRecord, StoryState
from storyloom._result import StoryResult
from storyloom._story import Character
from storyloom._story_file import StoryFile, load_story_file
from storyloom.cli import _wishes as wishes
from storyloom.cli._connection import Connection, connected
from storyloom.cli._display import choose_display
from storyloom.cli._exit import ExitCode, exit_code, explain_in_file
from storyloom.cli._generate import slug
from storyloom.cli._output import (
    complain,
    errors,
    explained_errors,
    frames_table,
    print_table,
    scores_text,
    stories_table,
    story_lines,
)


@connected
def watch(
    connection: Connection,
    story_id: wishes.StoryId,
    timeout: wishes.Timeout = None,
) -> None:
    """Show how a story gets on, until it is done. Ctrl-C leaves the story alone."""
    with connection.client() as client, explained_errors(connection.server):
        try:
            _follow(client, client.get_story(story_id), timeout, quiet=False)
        except KeyboardInterrupt:
            complain(f"stopped watching; the story goes on: storyloom fetch {story_id}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None


@connected
def fetch(
    connection: Connection,
    story_id: wishes.StoryId,
    out: wishes.Out = Path("out"),
    timeout: wishes.Timeout = None,
    no_progress: wishes.NoProgress = False,
) -> None:
    """Write a story's pictures, contact sheet and record to a folder under --out; wait for them if need be."""
    with connection.client() as client, explained_errors(connection.server):
        record = client.get_story(story_id)
        try:
            result = _follow(client, record, timeout, quiet=no_progress)
        except KeyboardInterrupt:
            complain(f"stopped waiting; the story goes on: storyloom fetch {story_id}")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        save(result, out / _name(record))


@connected
def status(connection: Connection, story_id: wishes.StoryId) -> None:
    """Show what the server knows of a story."""
    with connection.client() as client, explained_errors(connection.server):
        record = client.get_story(story_id)
    for line in story_lines(record):
        typer.echo(line)
    if record.frames:
        print_table(frames_table(record))


@connected
def list_stories(
    connection: Connection,
    state: Annotated[StoryState | None, typer.Option(help="Only stories in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
) -> None:
    """List your stories, newest first."""
    with connection.client() as client, explained_errors(connection.server):
        print_table(stories_table(itertools.islice(client.list_stories(state=state), limit)))


@connected
def cancel(connection: Connection, story_id: wishes.StoryId) -> None:
    """Cancel a story. One that has ended stays as it is."""
    with connection.client() as client, explained_errors(connection.server):
        record = client.cancel_story(story_id)
    typer.echo(f"{record.story_id}: {record.state or 'unknown'}")


@connected
def extend(
    connection: Connection,
    story_id: wishes.StoryId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Story file (YAML or JSON).", show_default=False)],
    out: wishes.Out = Path("out"),
    detach: wishes.Detach = False,
    request_id: wishes.RequestId = None,
    priority: wishes.PriorityOption = None,
    deadline: wishes.Deadline = None,
    timeout: wishes.Timeout = None,
    no_progress: wishes.NoProgress = False,
) -> None:
    """Put the frames of FILE behind those of a finished story, and write the new story to a folder under --out.

    The frames may name the story's characters, and new ones that FILE describes. The story's own title, style and
    settings hold, whatever FILE says. The finished story stays as it is.
    """
    wish = Wish(request_id, priority, deadline)
    with connection.client() as client, explained_errors(connection.server):
        cast = client.get_story(story_id).story.characters
        more = load_story_file(file, cast=cast)
        added = _new_characters(more, cast)
        record = _started(
            lambda: client.extend_story(
                story_id,
                more.story.frames,
                new_characters=added,
                request_id=wish.request_id,
                priority=wish.priority,
                deadline=wish.deadline,
            ),
            more,
            connection.server,
        )
        _finish(client, record, out, timeout, detach=detach, quiet=no_progress)


@connected
def redo(
    connection: Connection,
    story_id: wishes.StoryId,
    frame: Annotated[int, typer.Argument(metavar="FRAME", min=1, help="Number of the frame, from 1.")],
    prompt: Annotated[str | None, typer.Option(help="In place of the frame's prompt.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Of the new picture.")] = None,
    out: wishes.Out = Path("out"),
    detach: wishes.Detach = False,
    request_id: wishes.RequestId = None,
    priority: wishes.PriorityOption = None,
    deadline: wishes.Deadline = None,
    timeout: wishes.Timeout = None,
    no_progress: wishes.NoProgress = False,
) -> None:
    """Make one frame of a finished story again, and write the new story to a folder under --out.

    Without --prompt the frame says what it said; without --seed the server chooses one. The other frames, and the
    finished story, stay as they are.
    """
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("must not be empty", param_hint="--prompt")
    with connection.client() as client, explained_errors(connection.server):
        record = client.redo_frame(
            story_id,
            frame - 1,
            frame=prompt,
            seed=seed,
            request_id=request_id,
            priority=priority,
            deadline=deadline,
        )
        _finish(client, record, out, timeout, detach=detach, quiet=no_progress)


def save(result: StoryResult, folder: Path) -> None:
    """Writes a result and tells where it is."""
    try:
        result.save(folder)
    except OSError as error:
        complain(f"{folder}: cannot be written: {error.strerror or error}")
        raise typer.Exit(ExitCode.FAILED) from error
    typer.echo(f"{folder}: {summary(result)}")


def summary(result: StoryResult) -> str:
    """Returns how many pictures there are, how long they took and how well the characters agree."""
    text = f"frames: {len(result.pictures)}, seconds: {result.timings.total:.1f}"
    return f"{text}, consistency: {scores_text(result.consistency)}" if result.consistency else text


def _finish(
    client: StoryClient, record: StoryRecord, out: Path, timeout: float | None, *, detach: bool, quiet: bool
) -> None:
    if detach:
        typer.echo(record.story_id)
        return
    try:
        result = _follow(client, record, timeout, quiet=quiet)
    except (KeyboardInterrupt, StoryTimeout) as error:
        with suppress(ServerError):
            client.cancel_story(record.story_id, timeout=LEAVING_SECONDS)
        if isinstance(error, StoryTimeout):
            raise
        complain("interrupted; the server has been told to stop")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    save(result, out / _name(record))


def _follow(client: StoryClient, record: StoryRecord, timeout: float | None, *, quiet: bool) -> StoryResult:
    name = _name(record)
    with choose_display(errors, quiet=quiet) as display:
        display.start(name, len(record.story.frames))
        try:
            return client.wait(record.story_id, on_event=lambda event: display.event(name, event), timeout=timeout)
        except ServerError:
            display.fail(name)
            raise


def _started(start: Callable[[], StoryRecord], file: StoryFile, server: str) -> StoryRecord:
    try:
        return start()
    except ServerError as error:
        complain(explain_in_file(error, file, {}, server))
        raise typer.Exit(exit_code(error)) from error


def _new_characters(file: StoryFile, cast: dict[str, Character]) -> dict[str, Character]:
    # A file that says the cast of the story once more is no mistake, as long as it says the same.
    changed = [name for name, who in file.story.characters.items() if name in cast and not _same(who, cast[name])]
    if changed:
        message = "is a character of the story already, and looks otherwise there; leave it out or give it another name"
        marks = {name: file.locate(f"characters.{name}") for name in changed}
        raise StoryFileError(
            file.path, [Problem(message, f"characters.{name}", *(marks[name] or (0, 0))) for name in changed]
        )
    return {name: who for name, who in file.story.characters.items() if name not in cast}


def _same(one: Character, other: Character) -> bool:
    """Whether they are described alike; the server's word of a character is without its pictures."""
    bare = {"references": ()}
    return one.model_copy(update=bare) == other.model_copy(update=bare)


def _name(record: StoryRecord) -> str:
    return slug(record.story.title) or record.story_id
