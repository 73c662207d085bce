"""Everything that this package raises on purpose. Catch `StoryloomError` for all of it, or a branch of the tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar


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
    :ivar story_id: the story whose events were being read, if its id was known by then; else empty.
    :ivar sequence: of the last event that was read of it.
    """

    # What to do, for messages that do not come from a Storyloom server: its own say it themselves.
    _advice: ClassVar[str] = ""

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        self.message = message
        self.details = details or ErrorDetails()
        self.story_id = ""
        self.sequence = 0
        super().__init__(message)

    def __str__(self) -> str:
        advice = "" if self.details.reason else self._advice
        return f"{self.message}; {advice}" if advice else self.message


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that the server refused.

    :ivar field: path in the request, such as ``"story.frames[2].prompt"``.
    :ivar description: what is wrong with it, and what is accepted.
    """

    field: str
    description: str


class InvalidRequest(ServerError):  # noqa: N818
    """The server refused the request. Change what `violations` names; sending it again as it is cannot help."""

    def __init__(self, message: str, violations: Sequence[Violation], details: ErrorDetails | None = None) -> None:
        self.violations = tuple(violations)
        super().__init__(message, details)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {bad.field}: {bad.description}" for bad in self.violations)])


class InvalidStory(InvalidRequest):
    """The server refused the story; nothing was generated. Change what `violations` names."""


class NotFound(ServerError):  # noqa: N818
    """The server does not have what the request names.

    :ivar resource_type: such as ``"storyloom.dev/Story"``; empty when the server did not say.
    :ivar resource: its name or id, as it was asked for; may be empty.
    """

    _advice = "list what there is, with list_stories, list_characters or list_models"

    def __init__(
        self, message: str, details: ErrorDetails | None = None, *, resource_type: str = "", resource: str = ""
    ) -> None:
        self.resource_type = resource_type
        self.resource = resource
        super().__init__(message, details)


class RequestIdReused(ServerError):  # noqa: N818
    """The request id was used before, for a request with other content. Give each request an id of its own."""

    _advice = "give the request an id of its own"


class FailedPrecondition(ServerError):  # noqa: N818
    """Something has to change first, and not in the request: a model to be loaded, a story to be finished."""

    _advice = "see get_story or list_models for the present state"


class Unauthenticated(ServerError):  # noqa: N818
    """The server wants a token and got none, or none that it knows. Give one as `token` or in STORYLOOM_TOKEN."""

    _advice = "give a valid token, as token=... or in the environment variable STORYLOOM_TOKEN"


class PermissionDenied(ServerError):  # noqa: N818
    """The token is good, but not for this. Use another one, or ask whoever runs the server."""

    _advice = "use a token that may do this"


class _Retryable(ServerError):  # noqa: N818
    def __init__(self, message: str, details: ErrorDetails | None = None, *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message, details)

    def __str__(self) -> str:
        if self.story_id:
            # The story was accepted, so that it goes on, or will after a restart.
            place = f'watch("{self.story_id}", after={self.sequence})'
            return f"{self.message}; the story goes on: follow it with {place}"
        return super().__str__()


class ServerBusy(_Retryable):
    """The queue or a quota is full. Send the story again after `retry_after` seconds (None: not said)."""

    _advice = "try again later"


class ServerUnavailable(_Retryable):
    """No server answers, or it is starting or stopping. Try again after `retry_after` seconds (None: not said).

    A story that was accepted before (`story_id` is set) goes on; follow it with `watch`.
    """

    _advice = "see that the server runs and that the address is right"


class DeadlineRefused(ServerError):  # noqa: N818
    """The story cannot be done by its deadline, so it was not begun. Give it more time, fewer frames or fewer steps.

    :ivar estimate: seconds that the server expects the story to take.
    """

    _advice = "give it more time, or ask for fewer frames or steps"

    def __init__(self, message: str, details: ErrorDetails | None = None, *, estimate: float) -> None:
        self.estimate = estimate
        super().__init__(message, details)


class StoryTimeout(ServerError):  # noqa: N818
    """The story was not done within the timeout. The server has been told to stop, unless the call said otherwise."""

    _advice = "give it a longer timeout"


class StoryCancelled(ServerError):  # noqa: N818
    """The story was cancelled, or the client was closed while it waited. Generate the story again if need be."""

    _advice = "generate the story again if it is still wanted"


class StoryFailed(ServerError):  # noqa: N818
    """The server took the story and could not finish it; other stories are not affected."""

    _advice = "generate the story again, with another seed or fewer frames if it fails again"


def _describe(path: str, problem: Problem) -> str:
    place = f"{path}:{problem.line}:{problem.column}" if problem.line else path
    return f"{place}: {problem.field}: {problem.message}" if problem.field else f"{place}: {problem.message}"
