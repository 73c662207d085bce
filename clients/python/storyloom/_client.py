"""The client for ordinary code."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2_grpc

from storyloom._channel import DEFAULT_SERVER, Options, open_channel
from storyloom._core import (
    STORY_SERVICE,
    ClientBase,
    EventReader,
    Metadata,
    health_after,
    health_request,
    is_serving,
    translated_errors,
)
from storyloom._errors import ServerError
from storyloom._events import Health, ModelInfo, StoryEvent
from storyloom._result import StoryCollector, StoryResult
from storyloom._story import Story
from storyloom._wire import models_from, story_request
from storyloom.v1 import model_service_pb2, model_service_pb2_grpc, story_service_pb2_grpc


class StoryClient(ClientBase):
    """Talks to a Storyloom server. One client serves many threads and many stories at once; close it after use.

    :param server: ``host:port``, or any gRPC target such as ``dns:///storyloom.example:443``.
    :param credentials: from `grpc.ssl_channel_credentials`, for TLS; None for a plain connection.
    :param timeout: seconds that a story may take, waiting in the queue included; None for no limit. Each call can
        give its own.
    :param wait_for_ready: wait for a server that does not answer yet, rather than raise `ServerUnavailable`. Give a
        timeout too: a server that never comes is waited for until then.
    :param metadata: sent with every call, such as ``[("authorization", "Bearer ...")]``; keys in lower case.
    :param options: gRPC channel options; they win over this package's own.
    :param channel: a channel to use instead of opening one; it stays open when the client is closed.
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
        channel: grpc.Channel | None = None,
    ) -> None:
        super().__init__(timeout, wait_for_ready, metadata)
        self._owned = channel is None
        self._channel = channel or open_channel(server, credentials, options)
        self._stories = story_service_pb2_grpc.StoryServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def stream(self, story: Story, *, timeout: float | None = None) -> Generator[StoryEvent, None, None]:
        """Generates a story and yields what happens to it. The call starts with the first event asked for.

        Closing the generator, or leaving a loop over it for good, cancels the story on the server.

        :param timeout: seconds for this story; None for the client's own.
        :raises InvalidStory: when the server refuses the story; nothing was generated.
        :raises ServerBusy: when the server has no room for it.
        :raises ServerUnavailable: when no server answers, or it goes away.
        :raises StoryTimeout: when the story is not done in time.
        :raises ServerError: for every other failure; see its subclasses.
        """
        reader = EventReader()
        with translated_errors():
            call = self._stories.GenerateStory(story_request(story), **self._story_call(timeout))
            try:
                for response in call:
                    event = reader.read(response)
                    if event is not None:
                        yield event
            finally:
                call.cancel()  # type: ignore[no-untyped-call]  # missing in grpc-stubs
        reader.finish()

    def generate(
        self, story: Story, *, on_event: Callable[[StoryEvent], None] | None = None, timeout: float | None = None
    ) -> StoryResult:
        """Generates a story and returns its pictures. Raises what `stream` raises.

        :param on_event: called with each event as it comes; what it raises cancels the story.
        :param timeout: seconds for this story; None for the client's own.
        """
        collector = StoryCollector(story)
        events = self.stream(story, timeout=timeout)
        try:
            for event in events:
                collector.add(event)
                if on_event is not None:
                    on_event(event)
        finally:
            events.close()
        return collector.result()

    def list_models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Returns the served models and what they accept.

        :param timeout: seconds; None for ten.
        :raises ServerError: when the call fails.
        """
        with translated_errors():
            response = self._models.ListModels(model_service_pb2.ListModelsRequest(), **self._short_call(timeout))
        return models_from(response)

    def health(self, *, timeout: float | None = None) -> Health:
        """Returns whether the server answers, and whether it takes stories now.

        :param timeout: seconds; None for ten.
        :raises ServerError: when the call fails for another reason than an absent or busy server.
        """
        alive = False
        try:
            with translated_errors():
                alive = is_serving(self._health.Check(health_request(""), **self._short_call(timeout)))
                ready = is_serving(self._health.Check(health_request(STORY_SERVICE), **self._short_call(timeout)))
        except ServerError as error:
            return health_after(error, alive=alive)
        return Health(alive=alive, ready=ready)

    def close(self) -> None:
        """Closes the connection; stories still running are cancelled. A channel given by the caller stays open."""
        if self._owned:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
