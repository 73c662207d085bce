"""``storyloom.v1.StoryService``."""

import logging
from collections.abc import AsyncIterator

from storyloom.v1 import story_service_pb2 as pb
from storyloom.v1 import story_service_pb2_grpc
from storyloom_server import errors
from storyloom_server.access import Gate
from storyloom_server.desk import Desk
from storyloom_server.logs import fields
from storyloom_server.metrics import Metrics
from storyloom_server.orders import Order, OrderTaker
from storyloom_server.services.calls import Context, answered, page_size
from storyloom_server.store import StoryState
from storyloom_server.tenants import Tenant

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
        gate: tells who calls.
        orders: checks what they ask for.
        desk: accepts stories and knows them all.
        metrics: counts refusals, and what clients wait for.
    """

    def __init__(self, gate: Gate, orders: OrderTaker, desk: Desk, metrics: Metrics) -> None:
        self._gate = gate
        self._orders = orders
        self._desk = desk
        self._metrics = metrics

    @answered
    async def GenerateStory(self, request: pb.GenerateStoryRequest, context: Context) -> None:  # noqa: N802
        """Accepts a story and streams it. Errors before the first event are sent as trailers only, so that a client may
        retry.
        """
        tenant = self._caller(context)
        order = await self._orders.new_story(tenant, request, call_seconds=context.time_remaining())
        story_id = await self._accept(tenant, order)
        try:
            async for event in self._events(story_id, tenant, 0):
                await context.write(event)
        except BaseException:
            # The call ended before the story did.
            if request.on_disconnect == pb.DISCONNECT_POLICY_CANCEL:
                self._desk.abandon(story_id)
            raise

    @answered
    async def CreateStory(self, request: pb.CreateStoryRequest, context: Context) -> pb.CreateStoryResponse:  # noqa: N802
        """Accepts a story."""
        tenant = self._caller(context)
        story_id = await self._accept(tenant, await self._orders.new_story(tenant, request))
        return pb.CreateStoryResponse(story=await self._desk.record(story_id, tenant))

    @answered
    async def WatchStory(self, request: pb.WatchStoryRequest, context: Context) -> None:  # noqa: N802
        """Streams a story's events, old and new."""
        tenant = self._gate.tenant(context.invocation_metadata() or ())
        async for event in self._events(request.story_id, tenant, request.after_sequence):
            # The two messages have the same fields with the same numbers.
            await context.write(pb.WatchStoryResponse.FromString(event.SerializeToString()))

    @answered
    async def GetStory(self, request: pb.GetStoryRequest, context: Context) -> pb.GetStoryResponse:  # noqa: N802
        """All that is known of a story."""
        tenant = self._gate.tenant(context.invocation_metadata() or ())
        record = await self._desk.record(request.story_id, tenant, pictures=request.include_images)
        return pb.GetStoryResponse(story=record)

    @answered
    async def ListStories(self, request: pb.ListStoriesRequest, context: Context) -> pb.ListStoriesResponse:  # noqa: N802
        """The tenant's stories, newest first."""
        tenant = self._gate.tenant(context.invocation_metadata() or ())
        state = _STATES.get(request.state)
        stories, next_token = await self._desk.list(tenant, state, page_size(request.page_size), request.page_token)
        return pb.ListStoriesResponse(stories=stories, next_page_token=next_token)

    @answered
    async def CancelStory(self, request: pb.CancelStoryRequest, context: Context) -> pb.CancelStoryResponse:  # noqa: N802
        """Cancels a story wherever it is."""
        tenant = self._gate.tenant(context.invocation_metadata() or ())
        await self._desk.cancel(request.story_id, tenant)
        return pb.CancelStoryResponse(story=await self._desk.record(request.story_id, tenant))

    @answered
    async def ExtendStory(self, request: pb.ExtendStoryRequest, context: Context) -> pb.ExtendStoryResponse:  # noqa: N802
        """Accepts a story that goes on from a finished one."""
        tenant = self._caller(context)
        parent = await self._desk.record(request.story_id, tenant)
        story_id = await self._accept(tenant, await self._orders.extension(tenant, request, parent))
        return pb.ExtendStoryResponse(story=await self._desk.record(story_id, tenant))

    @answered
    async def RedoFrame(self, request: pb.RedoFrameRequest, context: Context) -> pb.RedoFrameResponse:  # noqa: N802
        """Accepts a story that differs from a finished one in one frame."""
        tenant = self._caller(context)
        parent = await self._desk.record(request.story_id, tenant)
        story_id = await self._accept(tenant, await self._orders.redone_frame(tenant, request, parent))
        return pb.RedoFrameResponse(story=await self._desk.record(story_id, tenant))

    def _caller(self, context: Context) -> Tenant:
        """The tenant that asks for a story, which counts against its rate."""
        tenant = self._gate.tenant(context.invocation_metadata() or ())
        self._gate.count_story(tenant)
        return tenant

    async def _accept(self, tenant: Tenant, order: Order) -> str:
        try:
            return await self._desk.accept(tenant, order)
        except errors.StoryError as error:
            log.info("story refused", extra=fields(reason=error.reason))
            raise

    async def _events(self, story_id: str, tenant: Tenant, after: int) -> AsyncIterator[pb.GenerateStoryResponse]:
        """A story's events with their pictures."""
        async for logged in self._desk.events(story_id, tenant, after):
            yield await self._desk.complete(logged)
