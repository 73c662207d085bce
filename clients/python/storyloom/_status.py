"""Reads failed gRPC calls: which of this package's errors each one is, and whether to try again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from storyloom._errors import (
    DeadlineRefused,
    ErrorDetails,
    FailedPrecondition,
    InvalidRequest,
    InvalidStory,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    StoryCancelled,
    StoryFailed,
    StoryTimeout,
    Unauthenticated,
    Violation,
)

_STATUS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"  # gRFC A6
_Detail = TypeVar("_Detail", bound=Message)
_SIMPLE: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.ALREADY_EXISTS: RequestIdReused,
    grpc.StatusCode.DEADLINE_EXCEEDED: StoryTimeout,
    grpc.StatusCode.CANCELLED: StoryCancelled,
    grpc.StatusCode.INTERNAL: StoryFailed,
    grpc.StatusCode.ABORTED: StoryFailed,
    grpc.StatusCode.DATA_LOSS: StoryFailed,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}


class _FailedCall(Protocol):
    # What the errors of grpc and of grpc.aio have in common; their stubs share no type that says so.
    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> list[tuple[str, str | bytes]] | None: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed call says about trying again.

    :ivar spoken: the server itself ended the call, with a ``google.rpc.Status``; otherwise the transport did.
    :ivar retry_info: seconds after which the server wants to be asked again; None: it said nothing.
    :ivar pushback: the same, said for this try (gRFC A6).
    :ivar final: the server forbids another try.
    :ivar text: message of the status.
    """

    code: grpc.StatusCode
    spoken: bool = False
    retry_info: float | None = None
    pushback: float | None = None
    final: bool = False
    text: str = ""

    @property
    def delay(self) -> float | None:
        """Seconds to wait at least; None where the server leaves it to the client."""
        return self.retry_info if self.pushback is None else self.pushback

    def may_repeat(self, *, repeatable: bool) -> bool:
        """Tells whether the same call may be made again.

        :param repeatable: whether the call does no harm if the server has acted on the first one already.
        """
        if self.final:
            return False
        if self.code is grpc.StatusCode.UNAVAILABLE:
            return repeatable or self.retry_info is not None
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_info is not None

    def may_resume(self) -> bool:
        """Tells whether a stream of events that ended so may be taken up again behind the last event."""
        if self.may_repeat(repeatable=True):
            return True
        # A reset stream has one of several codes, by where it was reset; what a server means, it says with details.
        broken = self.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        reset = self.code is grpc.StatusCode.CANCELLED and "RST_STREAM" in self.text
        return (broken or reset) and not self.spoken and not self.final


def read_failure(error: grpc.RpcError) -> Failure:
    """Returns what `error` says about trying again."""
    call = cast(_FailedCall, error)
    status = _status(call)
    delay = _detail(status, error_details_pb2.RetryInfo) if status else None
    pushback, final = _pushback(call)
    return Failure(
        call.code(),
        spoken=status is not None,
        retry_info=_seconds(delay) if delay else None,
        pushback=pushback,
        final=final,
        text=call.details() or "",
    )


def server_error(error: grpc.RpcError, *, about_story: bool = False) -> ServerError:
    """Returns the error to raise for `error`, with everything that the server told about it.

    :param about_story: whether the request held a story, or a part of one.
    """
    call = cast(_FailedCall, error)
    code = call.code()
    status = _status(call) or status_pb2.Status()
    message = status.message or call.details() or f"the call failed with {code.name}"
    info = _detail(status, error_details_pb2.ErrorInfo)
    details = ErrorDetails(code.name, info.reason if info else "", dict(info.metadata) if info else {})
    delay = _detail(status, error_details_pb2.RetryInfo)
    retry_after = _seconds(delay) if delay else None
    estimate = _milliseconds(details.metadata.get("estimateMs", ""))
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            request = _detail(status, error_details_pb2.BadRequest)
            bad = [Violation(each.field, each.description) for each in (request.field_violations if request else ())]
            return (InvalidStory if about_story else InvalidRequest)(message, bad, details)
        case grpc.StatusCode.NOT_FOUND:
            resource = _detail(status, error_details_pb2.ResourceInfo) or error_details_pb2.ResourceInfo()
            return NotFound(message, details, resource_type=resource.resource_type, resource=resource.resource_name)
        case grpc.StatusCode.UNAVAILABLE:
            return ServerUnavailable(message, details, retry_after=retry_after)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if delay:
            return ServerBusy(message, details, retry_after=retry_after)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Without a delay the story itself is too much (memory, message size): sending it again cannot help.
            return StoryFailed(message, details)
        case grpc.StatusCode.DEADLINE_EXCEEDED if estimate is not None:
            return DeadlineRefused(message, details, estimate=estimate)
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(f"{message}; is this a Storyloom server, of this client's version?", details)
        case _:
            return _SIMPLE.get(code, ServerError)(message, details)


def _status(call: _FailedCall) -> status_pb2.Status | None:
    for key, value in call.trailing_metadata() or ():
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break  # a proxy mangled it; the plain code and message are still there
    return None


def _pushback(call: _FailedCall) -> tuple[float | None, bool]:
    for key, value in call.trailing_metadata() or ():
        if key == _PUSHBACK_KEY:
            seconds = _milliseconds(value if isinstance(value, str) else "")
            # What is negative or no number means: do not try again.
            return seconds, seconds is None
    return None, False


def _milliseconds(text: str) -> float | None:
    return int(text) / 1000 if text.isascii() and text.isdigit() else None


def _seconds(delay: error_details_pb2.RetryInfo) -> float:
    return max(0.0, float(delay.retry_delay.ToNanoseconds()) / 1e9)


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail | None:
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None
