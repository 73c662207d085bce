"""What the sync and the async client share: everything but waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from storyloom._channel import Connection, Options, TlsOptions, authorization, plan_connection
from storyloom._errors import InvalidRequest, NotFound, ServerError, ServerUnavailable, StoryCancelled
from storyloom._events import Health
from storyloom._operations import Operation, Wish, generate_request
from storyloom._records import OnDisconnect
from storyloom._retry import RetryPolicy, Tries
from storyloom._session import StorySession, watching
from storyloom._status import read_failure, server_error
from storyloom._story import Story
from storyloom._trace import trace_headers

Metadata = Sequence[tuple[str, str]]
_MIB = 1024 * 1024
_SURE_BYTES = 4 * _MIB  # what servers take by default
LEAVING_SECONDS = 2.0  # for telling the server that nobody wants a story any more
_Function = TypeVar("_Function", bound=Callable[..., Any])


class CallOptions(TypedDict):
    """Arguments of every call."""

    timeout: float | None
    wait_for_ready: bool
    metadata: tuple[tuple[str, str | bytes], ...]


class ClientBase:
    """Settings that hold for every call of a client, and the stories that it follows."""

    def __init__(
        self,
        server: str,
        *,
        tls: bool | TlsOptions,
        credentials: grpc.ChannelCredentials | None,
        token: str | None,
        insecure_token: bool,
        timeout: float | None,
        wait_for_ready: bool,
        retry: RetryPolicy | None,
        metadata: Metadata,
        options: Options,
        own_channel: bool,
    ) -> None:
        self._connection: Connection = plan_connection(server, tls=tls, credentials=credentials, options=options)
        plain = own_channel and self._connection.credentials is None
        if any(key.lower() == "authorization" for key, _ in metadata):
            if token is not None:
                raise ValueError("token and metadata both give an authorization: give one of them")
            header: tuple[tuple[str, str], ...] = ()
        else:
            target = self._connection.target if plain else None
            header = authorization(token, target=target, insecure_token=insecure_token)
        self._metadata: tuple[tuple[str, str | bytes], ...] = (*metadata, *header)
        self._timeout = timeout
        self._wait_for_ready = wait_for_ready
        self._retry = retry or RetryPolicy()
        self._owned = own_channel
        self._closed = False
        self._following: set[StorySession] = set()

    def _call_options(self, timeout: float | None, *, wait: bool | None = None) -> CallOptions:
        return CallOptions(
            timeout=timeout,
            wait_for_ready=self._wait_for_ready if wait is None else wait,
            metadata=(*self._metadata, *trace_headers()),
        )

    def _session(
        self, story: Story, wish: Wish, on_disconnect: OnDisconnect | None, timeout: float | None
    ) -> StorySession:
        tries = Tries(self._retry, self._timeout if timeout is None else timeout)
        cancels = on_disconnect is None or OnDisconnect(on_disconnect) is not OnDisconnect.FINISH
        return StorySession(generate_request(story, wish, on_disconnect), tries, cancels=cancels)

    def _watching(self, story_id: str, after: int, timeout: float | None) -> StorySession:
        return watching(story_id, after, self._retry, self._timeout if timeout is None else timeout)

    def _tries(self, operation: Operation[Any], timeout: float | None, policy: RetryPolicy | None) -> Tries:
        return Tries(policy or self._retry, operation.seconds if timeout is None else timeout)

    def _check_open(self) -> None:
        if self._closed:
            raise StoryCancelled("the client is closed; open another one")


def surely_small(request: Message) -> bool:
    """Tells whether every server takes a message of this size, unless it was told not to."""
    return request.ByteSize() <= _SURE_BYTES


def refuse_too_large(request: Message, limit: int) -> None:
    """Checks a request against what its server takes.

    :param limit: bytes; 0 where the server does not say.
    :raises InvalidRequest: when it is larger.
    """
    size = request.ByteSize()
    if limit and size > limit:
        raise InvalidRequest(
            f"the request has {size / _MIB:.1f} MiB with its pictures, and the server takes "
            f"{limit / _MIB:.1f} (its option --max-request-mib); make the pictures smaller, or keep the characters on "
            "the server, one by one (create_character), and use them by id",
            (),
        )


def pause_before_repeat(operation: Operation[Any], error: grpc.RpcError, tries: Tries) -> float:
    """Returns the seconds to wait before `operation` is tried again.

    :raises ServerError: when it is not to be.
    """
    failure = read_failure(error)
    pause = tries.pause(failure, resuming=False) if failure.may_repeat(repeatable=operation.repeatable) else None
    if pause is None:
        raise server_error(error, about_story=operation.about_story) from error
    return pause


@contextmanager
def best_effort() -> Iterator[None]:
    """For a farewell: a server that cannot be told is not told. ValueError and so on come from a closed channel."""
    try:
        yield
    except (grpc.RpcError, ServerError, ValueError, RuntimeError, grpc.aio.UsageError):
        return


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
