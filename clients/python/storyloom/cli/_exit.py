"""Exit codes, and errors as the command shows them."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from storyloom._errors import (
    InvalidRequest,
    InvalidStory,
    NotFound,
    PermissionDenied,
    ServerBusy,
    ServerUnavailable,
    StoryFileError,
    StoryTimeout,
    Unauthenticated,
)
from storyloom._story_file import StoryFile

EXIT_CODES = (
    "Exit codes: 0 all well; 2 a story file or story is wrong, or what is named is not there; 3 the server is "
    "unavailable or busy; 4 the token is missing or may not do this; 130 interrupted; 1 anything else."
)


class ExitCode(enum.IntEnum):
    """What the command's exit status tells."""

    OK = 0
    FAILED = 1
    BAD_STORY = 2
    UNAVAILABLE = 3
    NOT_ALLOWED = 4
    INTERRUPTED = 130


def exit_code(error: Exception) -> ExitCode:
    """Returns the exit code that tells of `error`."""
    if isinstance(error, StoryFileError | InvalidRequest | NotFound):
        return ExitCode.BAD_STORY
    if isinstance(error, ServerUnavailable | ServerBusy):
        return ExitCode.UNAVAILABLE
    if isinstance(error, Unauthenticated | PermissionDenied):
        return ExitCode.NOT_ALLOWED
    return ExitCode.FAILED


def explain(error: Exception, server: str) -> str:
    """Returns what happened and what to do next."""
    match error:
        case ServerUnavailable() | ServerBusy() if error.story_id:
            return f"lost {server} ({error.message}); the story goes on: storyloom fetch {error.story_id}"
        case ServerUnavailable():
            advice = "start one with `storyloom serve`, or name another with --server"
            if error.retry_after:
                advice = f"try again in {error.retry_after:.0f} s"
            return f"no server takes stories at {server}: {advice}\n  ({error.message})"
        case ServerBusy():
            return f"the server {server} is busy ({error.message}); try again in {error.retry_after or 1:.0f} s"
        case StoryTimeout():
            return f"not done in time ({error.message}); give it longer with --timeout"
        case Unauthenticated():
            return f"the server wants a valid token ({error.message}); give it in STORYLOOM_TOKEN or with --token"
        case NotFound():
            return error.message
        case _:
            return str(error)


def explain_in_file(error: Exception, file: StoryFile, overrides: Mapping[str, str], server: str) -> str:
    """As `explain`, with each refused field shown where it was written: in the file, or as an option.

    :param overrides: field path of each setting given on the command line, and its option.
    """
    if not isinstance(error, InvalidStory) or not error.violations:
        return f"{file.path}: {explain(error, server)}"
    lines = []
    for bad in error.violations:
        field = bad.field.removeprefix("story.")
        mark = None if field in overrides else file.locate(bad.field)
        place = f"{file.path}:{mark.line}:{mark.column}" if mark else f"{file.path}"
        lines.append(f"{place}: {overrides.get(field, field)}: {bad.description}")
    return "\n".join(lines)
