"""What the sync and the async client share: everything but waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from storyloom._errors import NotFound, ServerError, ServerUnavailable
from storyloom._events import Done, Health, StoryEvent
from storyloom._status import server_error
from storyloom._wire import story_event
from storyloom.v1 import story_service_pb2

Metadata = Sequence[tuple[str, str]]
SHORT_CALL_SECONDS = 10.0  # for calls that a healthy server answers at once
STORY_SERVICE = "storyloom.v1.StoryService"
_Function = TypeVar("_Function", bound=Callable[..., Any])


class CallOptions(TypedDict):
    """Arguments of every call to a stub."""

    timeout: float | None
    wait_for_ready: bool
    metadata: tuple[tuple[str, str | bytes], ...]


class ClientBase:
    """Settings that hold for every call of a client."""

    def __init__(self, timeout: float | None, wait_for_ready: bool, metadata: Metadata) -> None:
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._metadata: tuple[tuple[str, str | bytes], ...] = tuple(metadata)

    def _story_call(self, timeout: float | None) -> CallOptions:
        return self._call(self._timeout if timeout is None else timeout)

    def _short_call(self, timeout: float | None) -> CallOptions:
        return self._call(SHORT_CALL_SECONDS if timeout is None else timeout)

    def _call(self, timeout: float | None) -> CallOptions:
        return CallOptions(timeout=timeout, wait_for_ready=self._wait_for_ready, metadata=self._metadata)


class EventReader:
    """Decodes the responses of one story, and notices a stream that ends too early."""

    def __init__(self) -> None:
        self._done = False

    def read(self, response: story_service_pb2.GenerateStoryResponse) -> StoryEvent | None:
        """Returns the event, or None for a kind that this version does not know."""
        event = story_event(response)
        self._done = self._done or isinstance(event, Done)
        return event

    def finish(self) -> None:
        """Called when the stream ended without an error.

        :raises ServerError: when the story was not done.
        """
        if not self._done:
            raise ServerError("the server ended the stream before the story was done; generate it again")


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raises this package's errors for those of gRPC."""
    try:
        yield
    except grpc.RpcError as error:
        raise server_error(error) from error


def health_request(service: str) -> health_pb2.HealthCheckRequest:
    """Returns the request for the health of `service`; ``""`` asks for the server as a whole."""
    return health_pb2.HealthCheckRequest(service=service)


def is_serving(response: health_pb2.HealthCheckResponse) -> bool:
    """Tells whether a health response says that the service works."""
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def health_after(error: ServerError, *, alive: bool) -> Health:
    """Returns what a failed health check means; raises the error where it means nothing.

    :param alive: whether the server as a whole is known to answer.
    """
    if isinstance(error, ServerUnavailable | NotFound):
        return Health(alive=alive, ready=False)
    raise error


def same_doc(original: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Gives a function the docstring of its counterpart, so that there is one text to keep true."""

    def apply(function: _Function) -> _Function:
        function.__doc__ = original.__doc__
        return function

    return apply
