"""Makes calls for asyncio code; the awaited counterpart of `_calls`."""

# ruff: noqa: ASYNC109 - the timeout travels with the call as its deadline, so that the server knows it too

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeVar

import grpc
import grpc.aio
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


class AsyncCalls(ClientBase):
    """What `AsyncStoryClient` does with its channel."""

    _channel: grpc.aio.Channel

    async def _run(self, operation: Operation[T], timeout: float | None = None, policy: RetryPolicy | None = None) -> T:
        await self._check_size(operation.request)
        tries = self._tries(operation, timeout, policy)
        while True:
            try:
                return operation.read(await self._send(operation, tries.remaining()))
            except grpc.RpcError as error:
                pause = pause_before_repeat(operation, error, tries)
            await asyncio.sleep(pause)

    async def _check_size(self, request: Message) -> None:
        if surely_small(request):
            return
        limit = 0
        with suppress(ServerError):  # The call itself will tell.
            limit = (await self._run(operations.get_model(""))).limits.max_request_bytes
        refuse_too_large(request, limit)

    async def _send(self, operation: Operation[Any], timeout: float | None, *, wait: bool | None = None) -> Any:
        self._check_open()
        call = self._channel.unary_unary(
            operation.method, type(operation.request).SerializeToString, operation.response.FromString
        )
        return await call(operation.request, **self._call_options(timeout, wait=wait))

    def _open(self, call: StreamCall, *, wait: bool | None = None) -> Any:
        self._check_open()
        stream = self._channel.unary_stream(call.method, type(call.request).SerializeToString, call.response.FromString)
        return stream(call.request, **self._call_options(call.timeout, wait=wait))

    async def _follow(self, session: StorySession) -> AsyncGenerator[StoryEvent, None]:
        await self._check_size(session.request)
        self._following.add(session)
        try:
            while True:
                call = self._open(session.next_call())
                try:
                    async for response in call:
                        event = session.read(response)
                        if event is not None:
                            yield event
                    session.ended()
                    return
                except grpc.RpcError as error:
                    pause = session.pause_after(error)
                finally:
                    call.cancel()
                await asyncio.sleep(pause)
        except BaseException as error:
            if session.cancels_after(error):
                await self._leave(session, LEAVING_SECONDS)
            raise
        finally:
            self._following.discard(session)

    async def _leave(self, session: StorySession, seconds: float) -> None:
        end = time.monotonic() + seconds
        with best_effort():
            story_id = session.story_id or await self._ask_id(session, seconds)
            if story_id:
                await self._send(operations.cancel_story(story_id), max(end - time.monotonic(), 0.1), wait=False)

    async def _ask_id(self, session: StorySession, seconds: float) -> str:
        call = self._open(session.question(seconds), wait=False)
        try:
            async for response in call:
                return str(response.story_id)
            return ""
        finally:
            call.cancel()

    async def _leave_all(self) -> None:
        leaving = [session for session in self._following if session.cancels_after(None)]
        await asyncio.gather(*(self._leave(session, LEAVING_SECONDS) for session in leaving))

    async def _pages(
        self, operation: Callable[[str], Operation[tuple[list[T], str]]], timeout: float | None
    ) -> AsyncIterator[T]:
        page = ""
        while True:
            items, page = await self._run(operation(page), timeout)
            for item in items:
                yield item
            if not page:
                return
