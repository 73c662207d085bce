"""An error as clients see it: a gRPC status whose details follow AIP-193.

Each carries one ``google.rpc.Status`` in ``grpc-status-details-bin`` with an ``ErrorInfo`` (a stable reason in the
domain storyloom.dev) and, where it applies, every field violation (``BadRequest``), the time to wait (``RetryInfo``),
the thing that is missing (``ResourceInfo``), the limit that is reached (``QuotaFailure``) or the state that has to
change first (``PreconditionFailure``). Every value in a message is in the ``ErrorInfo``'s metadata too. An error
without ``RetryInfo`` will not go away by itself.
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
# HTTP/2 peers take 8 KiB of trailers, and a status is in there twice: as message and, in base64, as details. The number
# of all violations is in the ErrorInfo's metadata.
_MAX_MESSAGE_BYTES = 1500
_MAX_VIOLATIONS_BYTES = 3000
_MAX_DESCRIPTION = 300


@dataclass(eq=False)
class StoryError(Exception):
    """Ends a call with a status.

    ``reason`` is the stable UPPER_SNAKE name for programs, ``message`` the sentence for people, ``retry_seconds`` the
    time after which the same call may succeed (None: it will not, unchanged). ``details`` are further
    ``google.rpc`` details, each type at most once; ``trailers`` is further metadata that ends the call.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    retry_seconds: float | None = None
    details: Sequence[Message] = ()
    trailers: Sequence[tuple[str, str]] = ()

    @classmethod
    def from_bytes(cls, stored: bytes) -> "StoryError":
        """The inverse of ``to_bytes``."""
        status = status_pb2.Status.FromString(stored)
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        info = error_details_pb2.ErrorInfo()
        status.details[0].Unpack(info)
        return cls(code, info.reason, status.message, metadata=dict(info.metadata))

    def to_bytes(self) -> bytes:
        """What the store keeps of a failed story's error: its code, reason, message and metadata."""
        data: bytes = self.status().SerializeToString()
        return data

    def status(self) -> status_pb2.Status:
        """The ``google.rpc.Status`` with all its details."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        ]
        if self.violations:
            details.append(error_details_pb2.BadRequest(field_violations=_that_fit(self.violations)))
        if self.retry_seconds is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_seconds * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        details.extend(self.details)
        return status_pb2.Status(
            code=self.code.value[0], message=_that_travels(self.message), details=[_pack(detail) for detail in details]
        )


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: StoryError) -> NoReturn:
    """Ends the call with ``error``. Before the first event this sends trailers only, so that clients may retry."""
    # gRPC keeps the frames of its last abort until the next one. What the error was raised through, such as a story's
    # run, must not stay with them.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    metadata = ((DETAILS_KEY, error.status().SerializeToString()), *error.trailers)
    await context.abort(error.code, _that_travels(error.message), trailing_metadata=metadata)


def _that_fit(violations: Sequence[Violation]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    """As many of the violations, from the first on, as a status can carry."""
    fitting, size = [], 0
    for violation in violations:
        packed = error_details_pb2.BadRequest.FieldViolation(
            field=violation.path, description=shortened(violation.message, _MAX_DESCRIPTION)
        )
        size += packed.ByteSize()
        if size > _MAX_VIOLATIONS_BYTES:
            break
        fitting.append(packed)
    return fitting


def _that_travels(message: str) -> str:
    """As much of a message as a status can carry, where all but ASCII takes three bytes for each of its own."""
    size = 0
    for index, sign in enumerate(message):
        size += 1 if sign.isascii() else 3 * len(sign.encode(errors="replace"))
        if size > _MAX_MESSAGE_BYTES:
            return f"{message[:index]}…"
    return message


def shortened(text: str, limit: int) -> str:
    """A text, or as much of it as there is room for."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
