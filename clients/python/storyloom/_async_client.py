"""The client for asyncio code: the same as `StoryClient`, awaited."""

# ruff: noqa: ASYNC109 - the timeout travels with the call as its deadline, so that the server knows it too

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from storyloom import _operations as operations
from storyloom._async_calls import AsyncCalls
from storyloom._channel import DEFAULT_SERVER, Options, TlsOptions
from storyloom._client import StoryClient
from storyloom._core import Metadata, health_after, same_doc
from storyloom._errors import ServerError
from storyloom._events import Health, ModelInfo, StoryEvent
from storyloom._operations import Wish
from storyloom._records import CharacterRecord, OnDisconnect, Priority, StoryRecord, StoryState
from storyloom._references import ReferenceLike
from storyloom._result import StoryCollector, StoryResult
from storyloom._retry import RetryPolicy
from storyloom._story import Character, Frame, Settings, Story


class AsyncStoryClient(AsyncCalls):
    """Talks to a Storyloom server from asyncio code. Make it where the event loop runs; it belongs to that loop.

    Takes the parameters of `StoryClient`; `channel` is a `grpc.aio.Channel`.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        tls: bool | TlsOptions = False,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        insecure_token: bool = False,
        timeout: float | None = None,
        wait_for_ready: bool = False,
        retry: RetryPolicy | None = None,
        metadata: Metadata = (),
        options: Options = (),
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        super().__init__(
            server,
            tls=tls,
            credentials=credentials,
            token=token,
            insecure_token=insecure_token,
            timeout=timeout,
            wait_for_ready=wait_for_ready,
            retry=retry,
            metadata=metadata,
            options=options,
            own_channel=channel is None,
        )
        self._channel = channel or self._connection.open_async()

    @same_doc(StoryClient.stream)
    def stream(
        self,
        story: Story,
        *,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_disconnect: OnDisconnect | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[StoryEvent, None]:
        return self._follow(self._session(story, Wish(request_id, priority, deadline), on_disconnect, timeout))

    @same_doc(StoryClient.generate)
    async def generate(
        self,
        story: Story,
        *,
        on_event: Callable[[StoryEvent], None] | None = None,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_disconnect: OnDisconnect | None = None,
        timeout: float | None = None,
    ) -> StoryResult:
        collector = StoryCollector(story)
        session = self._session(story, Wish(request_id, priority, deadline), on_disconnect, timeout)
        async with aclosing(self._follow(session)) as events:
            async for event in events:
                collector.add(event)
                if on_event is not None:
                    on_event(event)
        return collector.result()

    @same_doc(StoryClient.create_story)
    async def create_story(
        self,
        story: Story,
        *,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> StoryRecord:
        return await self._run(operations.create_story(story, Wish(request_id, priority, deadline)), timeout)

    @same_doc(StoryClient.watch)
    def watch(self, story_id: str, after: int = 0, *, timeout: float | None = None) -> AsyncGenerator[StoryEvent, None]:
        return self._follow(self._watching(story_id, after, timeout))

    @same_doc(StoryClient.wait)
    async def wait(
        self,
        story_id: str,
        *,
        on_event: Callable[[StoryEvent], None] | None = None,
        timeout: float | None = None,
    ) -> StoryResult:
        collector = StoryCollector((await self.get_story(story_id)).story)
        async with aclosing(self.watch(story_id, timeout=timeout)) as events:
            async for event in events:
                collector.add(event)
                if on_event is not None:
                    on_event(event)
        return collector.result()

    @same_doc(StoryClient.get_story)
    async def get_story(self, story_id: str, *, images: bool = False, timeout: float | None = None) -> StoryRecord:
        return await self._run(operations.get_story(story_id, images=images), timeout)

    @same_doc(StoryClient.list_stories)
    def list_stories(
        self, *, state: StoryState | None = None, timeout: float | None = None
    ) -> AsyncIterator[StoryRecord]:
        return self._pages(partial(operations.list_stories, state), timeout)

    @same_doc(StoryClient.cancel_story)
    async def cancel_story(self, story_id: str, *, timeout: float | None = None) -> StoryRecord:
        return await self._run(operations.cancel_story(story_id), timeout)

    @same_doc(StoryClient.extend_story)
    async def extend_story(
        self,
        story_id: str,
        frames: Sequence[Frame | str],
        *,
        new_characters: Mapping[str, Character | str] | None = None,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> StoryRecord:
        wish = Wish(request_id, priority, deadline)
        return await self._run(operations.extend_story(story_id, frames, new_characters or {}, wish), timeout)

    @same_doc(StoryClient.redo_frame)
    async def redo_frame(
        self,
        story_id: str,
        index: int,
        *,
        frame: Frame | str | None = None,
        seed: int | None = None,
        request_id: str | None = None,
        priority: Priority | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> StoryRecord:
        wish = Wish(request_id, priority, deadline)
        return await self._run(operations.redo_frame(story_id, index, frame, seed, wish), timeout)

    @same_doc(StoryClient.create_character)
    async def create_character(
        self,
        name: str,
        description: str = "",
        references: Iterable[ReferenceLike] = (),
        *,
        timeout: float | None = None,
    ) -> CharacterRecord:
        return await self._run(operations.create_character(name, description, references), timeout)

    @same_doc(StoryClient.discover_character)
    async def discover_character(
        self,
        name: str,
        description: str,
        *,
        style: str = "",
        candidates: int | None = None,
        rounds: int | None = None,
        seed: int | None = None,
        model: str = "",
        request_id: str | None = None,
        loops: int | None = None,
        negative_prompt: str | None = None,
        settings: Settings | Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> CharacterRecord:
        return await self._run(
            operations.discover_character(
                name,
                description,
                style,
                candidates,
                rounds,
                seed,
                model,
                request_id,
                loops,
                negative_prompt,
                settings,
            ),
            timeout,
        )

    @same_doc(StoryClient.get_character)
    async def get_character(self, character_id: str, *, timeout: float | None = None) -> CharacterRecord:
        return await self._run(operations.get_character(character_id), timeout)

    @same_doc(StoryClient.list_characters)
    def list_characters(self, *, timeout: float | None = None) -> AsyncIterator[CharacterRecord]:
        return self._pages(operations.list_characters, timeout)

    @same_doc(StoryClient.delete_character)
    async def delete_character(self, character_id: str, *, timeout: float | None = None) -> None:
        await self._run(operations.delete_character(character_id), timeout)

    @same_doc(StoryClient.list_models)
    async def list_models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        return await self._run(operations.list_models(), timeout)

    @same_doc(StoryClient.get_model)
    async def get_model(self, name: str = "", *, timeout: float | None = None) -> ModelInfo:
        return await self._run(operations.get_model(name), timeout)

    @same_doc(StoryClient.load_model)
    async def load_model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        return await self._run(operations.load_model(name), timeout)

    @same_doc(StoryClient.unload_model)
    async def unload_model(self, name: str, *, timeout: float | None = None) -> None:
        await self._run(operations.unload_model(name), timeout)

    @same_doc(StoryClient.warm_model)
    async def warm_model(self, name: str = "", *, timeout: float | None = None) -> float:
        return await self._run(operations.warm_model(name), timeout)

    @same_doc(StoryClient.health)
    async def health(self, *, timeout: float | None = None) -> Health:
        alive, never = False, RetryPolicy.never()
        try:
            alive = await self._run(operations.check_health(""), timeout, never)
            ready = await self._run(operations.check_health(operations.STORIES), timeout, never)
        except ServerError as error:
            return health_after(error, alive=alive)
        return Health(alive=alive, ready=ready)

    @same_doc(StoryClient.close)
    async def close(self) -> None:
        await self._leave_all()
        self._closed = True
        if self._owned:
            await self._channel.close(grace=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
