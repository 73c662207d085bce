"""Makes calls for ordinary code: sends, waits, tries again, follows a story's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from storyloom import _operations as operations
from storyloom._core import (
    LEAVING_SECONDS,
    ClientBase,
    best_effort,
    pause_before_repeat,
    refuse_too_large,
    surely_small,
)
from storyloom._errors import ServerError
from storyloom._events import StoryEvent
from storyloom._operations import Operation
from storyloom._retry import RetryPolicy
from storyloom._session import StorySession, StreamCall

T = TypeVar("T")


class Calls(ClientBase):
    """What `StoryClient` does with its channel."""

    _channel: grpc.Channel

    def _run(self, operation: Operation[T], timeout: float | None = None, policy: RetryPolicy | None = None) -> T:
        self._check_size(operation.request)
        tries = self._tries(operation, timeout, policy)
        while True:
            try:
                return operation.read(self._send(operation, tries.remaining()))
            except grpc.RpcError as error:
                pause = pause_before_repeat(operation, error, tries)
            time.sleep(pause)

    def _check_size(self, request: Message) -> None:
        if surely_small(request):
            return
        limit = 0
        with suppress(ServerError):  # The call itself will tell.
            limit = (self._run(operations.get_model(""))).limits.max_request_bytes
        refuse_too_large(request, limit)

    def _send(self, operation: Operation[Any], timeout: float | None, *, wait: bool | None = None) -> Any:
        self._check_open()
        call = self._channel.unary_unary(
            operation.method, type(operation.request).SerializeToString, operation.response.FromString
        )
        return call(operation.request, **self._call_options(timeout, wait=wait))

    def _open(self, call: StreamCall, *, wait: bool | None = None) -> Any:
        self._check_open()
        stream = self._channel.unary_stream(call.method, type(call.request).SerializeToString, call.response.FromString)
        return stream(call.request, **self._call_options(call.timeout, wait=wait))

    def _follow(self, session: StorySession) -> Generator[StoryEvent, None, None]:
        self._check_size(session.request)
        self._following.add(session)
        try:
            while True:
                call = self._open(session.next_call())
                try:
                    for response in call:
                        event = session.read(response)
                        if event is not None:
                            yield event
                    session.ended()
                    return
                except grpc.RpcError as error:
                    pause = session.pause_after(error)
                finally:
                    call.cancel()
                time.sleep(pause)
        except BaseException as error:
            if session.cancels_after(error):
                self._leave(session, LEAVING_SECONDS)
            raise
        finally:
            self._following.discard(session)

    def _leave(self, session: StorySession, seconds: float) -> None:
        end = time.monotonic() + seconds
        with best_effort():
            story_id = session.story_id or self._ask_id(session, seconds)
            if story_id:
                self._send(operations.cancel_story(story_id), max(end - time.monotonic(), 0.1), wait=False)

    def _ask_id(self, session: StorySession, seconds: float) -> str:
        call = self._open(session.question(seconds), wait=False)
        try:
            return next((str(response.story_id) for response in call), "")
        finally:
            call.cancel()

    def _leave_all(self) -> None:
        end = time.monotonic() + LEAVING_SECONDS
        for session in list(self._following):
            if session.cancels_after(None):
                self._leave(session, max(end - time.monotonic(), 0.1))

    def _pages(self, operation: Callable[[str], Operation[tuple[list[T], str]]], timeout: float | None) -> Iterator[T]:
        page = ""
        while True:
            items, page = self._run(operation(page), timeout)
            yield from items
            if not page:
                return
