"""The errors that clients see: a gRPC status whose details follow AIP-193.

Each carries one ``google.rpc.Status`` in ``grpc-status-details-bin`` with an ``ErrorInfo`` (a stable reason in the
domain storyloom.dev) and, where it applies, every field violation (``BadRequest``) or the time to wait (``RetryInfo``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from storyloom_server.violations import Violation

DOMAIN = "storyloom.dev"
DETAILS_KEY = "grpc-status-details-bin"


@dataclass(eq=False)
class StoryError(Exception):
    """Ends a call with a status.

    ``reason`` is the stable UPPER_SNAKE name for programs, ``message`` the sentence for people, ``retry_seconds`` the
    time after which the same call may succeed (None: it will not, unchanged).
    """

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    retry_seconds: float | None = None

    def status(self) -> status_pb2.Status:
        """The ``google.rpc.Status`` with all its details."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        ]
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=violation.path, description=violation.message)
                        for violation in self.violations
                    ]
                )
            )
        if self.retry_seconds is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_seconds * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return status_pb2.Status(
            code=self.code.value[0], message=self.message, details=[_pack(detail) for detail in details]
        )


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: StoryError) -> NoReturn:
    """Ends the call with ``error``. Before the first event this sends trailers only, so that clients may retry."""
    metadata = ((DETAILS_KEY, error.status().SerializeToString()),)
    await context.abort(error.code, error.message, trailing_metadata=metadata)


def invalid_story(violations: Sequence[Violation]) -> StoryError:
    """The request has bad fields; all of them are listed."""
    listed = "; ".join(f"{violation.path}: {violation.message}" for violation in violations[:3])
    more = f"; and {len(violations) - 3} more" if len(violations) > 3 else ""
    return StoryError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_STORY",
        f"{listed}{more}",
        metadata={"violations": str(len(violations))},
        violations=violations,
    )


def queue_full(waiting: int, retry_seconds: float) -> StoryError:
    """As many stories wait as may wait."""
    return StoryError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        f"{waiting} stories are waiting already; try again in {retry_seconds:g} s or on another server",
        metadata={"waiting": str(waiting), "retrySeconds": f"{retry_seconds:g}"},
        retry_seconds=retry_seconds,
    )


def starting() -> StoryError:
    """The model is not loaded yet."""
    return _unavailable("STARTING", "the server is loading its models; try again soon", retry_seconds=2.0)


def draining() -> StoryError:
    """The server is about to stop."""
    return _unavailable("DRAINING", "the server is shutting down; try another server", retry_seconds=1.0)


def engine_lost() -> StoryError:
    """The engine process died. The story was not finished and may be sent again."""
    return _unavailable(
        "ENGINE_LOST", "the engine process died before the story was done; send the story again", retry_seconds=5.0
    )


def story_failed(reason: str, message: str) -> StoryError:
    """This story alone went wrong in the engine."""
    return StoryError(grpc.StatusCode.INTERNAL, reason, message)


def _unavailable(reason: str, message: str, *, retry_seconds: float) -> StoryError:
    return StoryError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_seconds=retry_seconds)
