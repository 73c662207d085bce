"""Turns a failed gRPC call into one of this package's errors."""

from __future__ import annotations

from typing import Protocol, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from storyloom._errors import (
    ErrorDetails,
    InvalidStory,
    NotFound,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    StoryCancelled,
    StoryFailed,
    StoryTimeout,
    Violation,
)

_STATUS_KEY = "grpc-status-details-bin"
_Detail = TypeVar("_Detail", bound=Message)
_SIMPLE: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.DEADLINE_EXCEEDED: StoryTimeout,
    grpc.StatusCode.CANCELLED: StoryCancelled,
    grpc.StatusCode.INTERNAL: StoryFailed,
    grpc.StatusCode.ABORTED: StoryFailed,
    grpc.StatusCode.DATA_LOSS: StoryFailed,
    grpc.StatusCode.FAILED_PRECONDITION: StoryFailed,
}


class _FailedCall(Protocol):
    # What the errors of grpc and of grpc.aio have in common; their stubs share no type that says so.
    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> list[tuple[str, str | bytes]] | None: ...


def server_error(error: grpc.RpcError) -> ServerError:
    """Returns the error to raise for `error`, with everything that the server told about it."""
    call = cast(_FailedCall, error)
    code = call.code()
    status = _status(call)
    message = status.message or call.details() or f"the call failed with {code.name}"
    info = _detail(status, error_details_pb2.ErrorInfo)
    details = ErrorDetails(code.name, info.reason if info else "", dict(info.metadata) if info else {})
    delay = _detail(status, error_details_pb2.RetryInfo)
    retry_after = delay.retry_delay.ToTimedelta().total_seconds() if delay else None
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        request = _detail(status, error_details_pb2.BadRequest)
        violations = request.field_violations if request else ()
        return InvalidStory(message, [Violation(bad.field, bad.description) for bad in violations], details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return ServerUnavailable(message, details, retry_after=retry_after)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without a delay the story itself is too much (memory, message size): sending it again cannot help.
        return ServerBusy(message, details, retry_after=retry_after) if delay else StoryFailed(message, details)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerError(f"{message}; is this a Storyloom server, of this client's version?", details)
    return _SIMPLE.get(code, ServerError)(message, details)


def _status(call: _FailedCall) -> status_pb2.Status:
    for key, value in call.trailing_metadata() or ():
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break  # a proxy mangled it; the plain code and message are still there
    return status_pb2.Status()


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail | None:
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None
