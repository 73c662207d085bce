"""The client for asyncio code: the same as `StoryClient`, awaited."""

# ruff: noqa: ASYNC109 - the timeout travels with the call as its deadline, so that the server knows it too

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Self, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from storyloom._channel import DEFAULT_SERVER, Options, open_async_channel
from storyloom._client import StoryClient
from storyloom._core import (
    STORY_SERVICE,
    ClientBase,
    EventReader,
    Metadata,
    health_after,
    health_request,
    is_serving,
    same_doc,
    translated_errors,
)
from storyloom._errors import ServerError
from storyloom._events import Health, ModelInfo, StoryEvent
from storyloom._result import StoryCollector, StoryResult
from storyloom._story import Story
from storyloom._wire import models_from, story_request
from storyloom.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    story_service_pb2,
    story_service_pb2_grpc,
)

_Generate = grpc.aio.UnaryStreamMultiCallable[
    story_service_pb2.GenerateStoryRequest, story_service_pb2.GenerateStoryResponse
]
_List = grpc.aio.UnaryUnaryMultiCallable[model_service_pb2.ListModelsRequest, model_service_pb2.ListModelsResponse]


class AsyncStoryClient(ClientBase):
    """Talks to a Storyloom server from asyncio code. Make it where the event loop runs; it belongs to that loop.

    Takes the parameters of `StoryClient`; `channel` is a `grpc.aio.Channel`.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float | None = None,
        wait_for_ready: bool = False,
        metadata: Metadata = (),
        options: Options = (),
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        super().__init__(timeout, wait_for_ready, metadata)
        self._owned = channel is None
        self._channel = channel or open_async_channel(server, credentials, options)
        # The generated stubs serve both kinds of channel, and are typed for the plain one.
        self._generate = cast("_Generate", story_service_pb2_grpc.StoryServiceStub(self._channel).GenerateStory)
        self._list = cast("_List", model_service_pb2_grpc.ModelServiceStub(self._channel).ListModels)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    @same_doc(StoryClient.stream)
    async def stream(self, story: Story, *, timeout: float | None = None) -> AsyncGenerator[StoryEvent, None]:
        reader = EventReader()
        with translated_errors():
            call = self._generate(story_request(story), **self._story_call(timeout))
            try:
                async for response in call:
                    event = reader.read(response)
                    if event is not None:
                        yield event
            finally:
                call.cancel()
        reader.finish()

    @same_doc(StoryClient.generate)
    async def generate(
        self, story: Story, *, on_event: Callable[[StoryEvent], None] | None = None, timeout: float | None = None
    ) -> StoryResult:
        collector = StoryCollector(story)
        async with aclosing(self.stream(story, timeout=timeout)) as events:
            async for event in events:
                collector.add(event)
                if on_event is not None:
                    on_event(event)
        return collector.result()

    @same_doc(StoryClient.list_models)
    async def list_models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        with translated_errors():
            response = await self._list(model_service_pb2.ListModelsRequest(), **self._short_call(timeout))
        return models_from(response)

    @same_doc(StoryClient.health)
    async def health(self, *, timeout: float | None = None) -> Health:
        alive = False
        try:
            with translated_errors():
                alive = is_serving(await self._health.Check(health_request(""), **self._short_call(timeout)))
                ready = is_serving(await self._health.Check(health_request(STORY_SERVICE), **self._short_call(timeout)))
        except ServerError as error:
            return health_after(error, alive=alive)
        return Health(alive=alive, ready=ready)

    @same_doc(StoryClient.close)
    async def close(self) -> None:
        if self._owned:
            await self._channel.close(grace=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
