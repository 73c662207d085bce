"""Everything that this package raises on purpose. Catch `StoryloomError` for all of it, or a branch of the tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class StoryloomError(Exception):
    """Base of every error of this package."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a story file. Lines and columns start at 1; both are 0 when the place is unknown."""

    message: str
    field: str = ""
    line: int = 0
    column: int = 0


class StoryFileError(StoryloomError):
    """A story file cannot be read or does not describe a story. Its text is one line for each problem.

    :ivar path: the file, as given.
    :ivar problems: everything found, in the order of the file.
    """

    def __init__(self, path: str, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__("\n".join(_describe(path, problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a failed call said, in machine-readable form.

    :ivar code: name of the gRPC status, such as ``"UNAVAILABLE"``; empty when the server broke the protocol.
    :ivar reason: short constant name of the cause from the server, such as ``"QUEUE_FULL"``; may be empty.
    :ivar metadata: the values that the message speaks of.
    """

    code: str = ""
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


class ServerError(StoryloomError):
    """A call failed. The subclasses say what to do about it.

    :ivar message: what the server, or gRPC itself, said.
    :ivar details: the status behind it.
    """

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        self.message = message
        self.details = details or ErrorDetails()
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that the server refused.

    :ivar field: path in the request, such as ``"story.frames[2].prompt"``.
    :ivar description: what is wrong with it, and what is accepted.
    """

    field: str
    description: str


class InvalidStory(ServerError):  # noqa: N818
    """The server refused the story. Change what `violations` names; sending it again as it is cannot help."""

    def __init__(self, message: str, violations: Sequence[Violation], details: ErrorDetails | None = None) -> None:
        self.violations = tuple(violations)
        super().__init__(message, details)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {bad.field}: {bad.description}" for bad in self.violations)])


class NotFound(ServerError):  # noqa: N818
    """The server does not have what the request names."""


class _Retryable(ServerError):  # noqa: N818
    def __init__(self, message: str, details: ErrorDetails | None = None, *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message, details)


class ServerBusy(_Retryable):
    """The queue or a quota is full. Send the story again after `retry_after` seconds (None: not said)."""


class ServerUnavailable(_Retryable):
    """No server answers, or it is starting or stopping. Try again after `retry_after` seconds (None: not said)."""


class StoryTimeout(ServerError):  # noqa: N818
    """The story was not done within the timeout; the server has been told to stop."""


class StoryCancelled(ServerError):  # noqa: N818
    """The call was cancelled by someone else: the channel was closed, or the server stopped."""


class StoryFailed(ServerError):  # noqa: N818
    """The server took the story and could not finish it; other stories are not affected."""


def _describe(path: str, problem: Problem) -> str:
    place = f"{path}:{problem.line}:{problem.column}" if problem.line else path
    return f"{place}: {problem.field}: {problem.message}" if problem.field else f"{place}: {problem.message}"
