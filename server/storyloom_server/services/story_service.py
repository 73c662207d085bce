"""``storyloom.v1.StoryService``."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import grpc

from storyloom.v1 import story_service_pb2 as pb
from storyloom.v1 import story_service_pb2_grpc
from storyloom_server import errors
from storyloom_server.authentication import current_tenant
from storyloom_server.desk import Desk
from storyloom_server.logs import fields
from storyloom_server.metrics import Metrics
from storyloom_server.orders import Order, OrderTaker
from storyloom_server.services.calls import Context, answered, page_size
from storyloom_server.store import StoryState
from storyloom_server.store.errors import StoreError
from storyloom_server.story_error import StoryError
from storyloom_server.tenants import Tenant
from storyloom_server.violations import Violation

log = logging.getLogger("storyloom.service")

_STATES = {
    pb.STORY_STATE_UNSPECIFIED: None,
    pb.STORY_STATE_QUEUED: StoryState.QUEUED,
    pb.STORY_STATE_RUNNING: StoryState.RUNNING,
    pb.STORY_STATE_FINISHED: StoryState.FINISHED,
    pb.STORY_STATE_FAILED: StoryState.FAILED,
    pb.STORY_STATE_CANCELLED: StoryState.CANCELLED,
}


class StoryService(story_service_pb2_grpc.StoryServiceServicer):
    """Stories in, events out.

    Args:
        orders: checks what they ask for.
        desk: accepts stories and knows them all.
        metrics: counts refusals, and what clients wait for.
    """

    def __init__(self, orders: OrderTaker, desk: Desk, metrics: Metrics) -> None:
        self._orders = orders
        self._desk = desk
        self._archive = desk.archive
        self._metrics = metrics

    @answered
    async def GenerateStory(self, request: pb.GenerateStoryRequest, context: Context) -> None:  # noqa: N802
        """Accepts a story and streams it. Errors before the first event are sent as trailers only, so that a client may
        retry.
        """
        waits = _Waits(self._metrics)
        story_id = await self._place(
            context, lambda tenant: self._orders.new_story(tenant, request, call_seconds=context.time_remaining())
        )
        try:
            async for event in self._events(story_id, current_tenant(), 0):
                await context.write(event)
                waits.sent(event)
        except BaseException as error:
            if request.on_disconnect == pb.DISCONNECT_POLICY_CANCEL:
                self._desk.abandon(story_id)
            if not isinstance(error, grpc.aio.InternalError):  # The client has left: nobody is to be told.
                raise

    @answered
    async def CreateStory(self, request: pb.CreateStoryRequest, context: Context) -> pb.CreateStoryResponse:  # noqa: N802
        """Accepts a story."""
        story_id = await self._place(context, lambda tenant: self._orders.new_story(tenant, request))
        return pb.CreateStoryResponse(story=await self._archive.record(story_id, current_tenant()))

    @answered
    async def WatchStory(self, request: pb.WatchStoryRequest, context: Context) -> None:  # noqa: N802
        """Streams a story's events, old and new."""
        tenant = current_tenant()
        with suppress(grpc.aio.InternalError):  # The client has left.
            async for event in self._events(request.story_id, tenant, request.after_sequence):
                # The two messages have the same fields with the same numbers.
                await context.write(pb.WatchStoryResponse.FromString(event.SerializeToString()))

    @answered
    async def GetStory(self, request: pb.GetStoryRequest, context: Context) -> pb.GetStoryResponse:  # noqa: N802
        """All that is known of a story."""
        tenant = current_tenant()
        record = await self._archive.record(request.story_id, tenant, pictures=request.include_images)
        return pb.GetStoryResponse(story=record)

    @answered
    async def ListStories(self, request: pb.ListStoriesRequest, context: Context) -> pb.ListStoriesResponse:  # noqa: N802
        """The tenant's stories, newest first."""
        tenant = current_tenant()
        if request.state not in _STATES:
            raise errors.invalid_request([Violation("state", f"state {int(request.state)} is unknown; leave it out")])
        state = _STATES[request.state]
        stories, next_token = await self._archive.list(tenant, state, page_size(request.page_size), request.page_token)
        return pb.ListStoriesResponse(stories=stories, next_page_token=next_token)

    @answered
    async def CancelStory(self, request: pb.CancelStoryRequest, context: Context) -> pb.CancelStoryResponse:  # noqa: N802
        """Cancels a story wherever it is."""
        tenant = current_tenant()
        await self._desk.cancel(request.story_id, tenant)
        return pb.CancelStoryResponse(story=await self._archive.record(request.story_id, tenant))

    @answered
    async def ExtendStory(self, request: pb.ExtendStoryRequest, context: Context) -> pb.ExtendStoryResponse:  # noqa: N802
        """Accepts a story that goes on from a finished one."""

        async def extension(tenant: Tenant) -> Order:
            return await self._orders.extension(tenant, request, await self._archive.parent(request.story_id, tenant))

        story_id = await self._place(context, extension)
        return pb.ExtendStoryResponse(story=await self._archive.record(story_id, current_tenant()))

    @answered
    async def RedoFrame(self, request: pb.RedoFrameRequest, context: Context) -> pb.RedoFrameResponse:  # noqa: N802
        """Accepts a story that differs from a finished one in one frame."""

        async def redone(tenant: Tenant) -> Order:
            return await self._orders.redone_frame(
                tenant, request, await self._archive.parent(request.story_id, tenant)
            )

        story_id = await self._place(context, redone)
        return pb.RedoFrameResponse(story=await self._archive.record(story_id, current_tenant()))

    async def _place(self, context: Context, order: Callable[[Tenant], Awaitable[Order]]) -> str:
        """Has an order accepted, and returns the story's id. A refusal is counted."""
        tenant = current_tenant()
        try:
            return await self._desk.accept(tenant, await order(tenant), tuple(context.invocation_metadata() or ()))
        except (StoryError, StoreError) as error:
            refusal = error if isinstance(error, StoryError) else errors.from_store(error, tenant.name)
            self._metrics.request_rejected(refusal.reason)
            log.info("story refused", extra=fields(reason=refusal.reason))
            raise refusal from error

    async def _events(self, story_id: str, tenant: Tenant, after: int) -> AsyncIterator[pb.GenerateStoryResponse]:
        """A story's events with their pictures."""
        async for logged in self._archive.events(story_id, tenant, after):
            yield await self._archive.complete(logged)


class _Waits:
    """Measures how long a client waits for the first event and for the first picture."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.monotonic()
        self._events = 0
        self._pictures = 0

    def sent(self, event: pb.GenerateStoryResponse) -> None:
        """The client has this event."""
        seconds = time.monotonic() - self._began
        if self._events == 0:
            self._metrics.first_event(seconds)
        self._events += 1
        if event.HasField("preview") or event.HasField("frame"):
            if self._pictures == 0:
                self._metrics.first_preview(seconds)
            self._pictures += 1
