"""What the commands print: complaints, records, tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from storyloom._errors import ServerError, StoryFileError
from storyloom._events import ModelInfo
from storyloom._records import CharacterRecord, StoryRecord
from storyloom._story import Settings
from storyloom.cli._exit import ExitCode, exit_code, explain

errors = Console(stderr=True)


def complain(message: str) -> None:
    """Prints to standard error, in red on a terminal."""
    errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def explained_errors(server: str) -> Iterator[None]:
    """Ends the command with an explanation and an exit code where this package raises an error."""
    try:
        yield
    except StoryFileError as error:
        complain(str(error))
        raise typer.Exit(ExitCode.BAD_STORY) from error
    except ServerError as error:
        complain(explain(error, server))
        raise typer.Exit(exit_code(error)) from error


def print_table(table: Table) -> None:
    """Prints a table to standard output, as wide as it needs to be where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=Console(width=100_000).measure(table).maximum)
    console.print(table)


def models_table(served: Iterable[ModelInfo]) -> Table:
    """Returns a line for each model."""
    table = Table("model", "sizes", "defaults", "limits", "solvers", "adapters", "identity", "LoRA", "methods", "poses")
    for model in served:
        limits = model.limits
        table.add_row(
            f"{model.name} (default)" if model.is_default else model.name,
            ", ".join(f"{width}x{height}" for width, height in model.sizes),
            _settings_text(model.defaults),
            f"{limits.max_frames} frames, {limits.max_characters} characters, {limits.max_steps} steps, "
            f"{limits.max_prompt_tokens} tokens",
            ", ".join(model.solvers),
            ", ".join(model.adapters),
            ", ".join(model.identity_adapters),
            ", ".join(model.loras),
            ", ".join(model.methods),
            ", ".join(model.controlnets),
        )
    return table


def stories_table(stories: Iterable[StoryRecord]) -> Table:
    """Returns a line for each story."""
    table = Table("story", "state", "title", "frames", "created", "consistency")
    for story in stories:
        table.add_row(
            story.story_id,
            story.state or "unknown",
            escape(story.story.title),
            str(len(story.story.frames)),
            time_text(story.created),
            scores_text(story.done.consistency) if story.done else "",
        )
    return table


def characters_table(characters: Iterable[CharacterRecord]) -> Table:
    """Returns a line for each character."""
    table = Table("character", "name", "description", "references", "created")
    for character in characters:
        table.add_row(
            character.character_id,
            escape(character.name),
            escape(character.description),
            str(character.references),
            time_text(character.created),
        )
    return table


def story_lines(record: StoryRecord) -> Iterator[str]:
    """Yields what there is to tell of a story, a line for each thing."""
    yield f"story: {record.story_id}"
    yield f"state: {record.state or 'unknown'}"
    if record.story.title:
        yield f"title: {record.story.title}"
    yield f"frames: {len(record.frames)} of {len(record.story.frames)} done"
    for name, time in (("created", record.created), ("finished", record.finished), ("expires", record.expires)):
        if time:
            yield f"{name}: {time_text(time)}"
    if record.parent_id:
        yield f"made from: {record.parent_id}"
    if record.failure:
        yield f"failure: {record.failure.message} ({record.failure.reason or record.failure.code})"
    if record.done:
        yield f"seconds: {record.done.timings.total:.1f}"
        if record.done.consistency:
            yield f"consistency: {scores_text(record.done.consistency)}"


def frames_table(record: StoryRecord) -> Table:
    """Returns a line for each frame that is done; numbers start at 1, as those of the files."""
    lacking = any(frame.missing_characters for frame in record.frames)
    table = Table("frame", "caption", "seed", "seconds", "reused", "safety", *(["not found"] if lacking else []))
    captions = record.story.captions
    for frame in record.frames:
        table.add_row(
            str(frame.frame_index + 1),
            escape(captions[frame.frame_index]) if frame.frame_index < len(captions) else "",
            str(frame.seed),
            f"{frame.finished_seconds:.1f}",
            "yes" if frame.reused else "",
            escape(frame.safety_flag),
            *([", ".join(frame.missing_characters)] if lacking else []),
        )
    return table


def scores_text(consistency: Mapping[str, float]) -> str:
    """Returns ``"mia 0.88, tom 0.91"``."""
    return ", ".join(f"{name} {score:.2f}" for name, score in consistency.items())


def time_text(time: datetime | None) -> str:
    """Returns the local time, to the second."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}" if time else ""


def _settings_text(settings: Settings) -> str:
    parts = [f"{settings.steps} steps", f"guidance {settings.guidance_scale}", settings.solver]
    return ", ".join(str(part) for part in parts if part)
