"""The gRPC services: check a story, admit it, and stream what happens to it."""

import logging
import uuid
from concurrent.futures import Executor
from typing import Any

import grpc

from storyloom.v1 import model_service_pb2, model_service_pb2_grpc, story_service_pb2, story_service_pb2_grpc
from storyloom_server import errors, messages
from storyloom_server.catalog import ModelCatalog
from storyloom_server.engine_client import EngineClient, EngineStatus, OpenStory, QueueFullError
from storyloom_server.events import EventStream
from storyloom_server.logs import fields
from storyloom_server.validate import StoryPlan, plan_story

log = logging.getLogger("storyloom.service")

# Long enough for a place in a full queue to become free, short enough that a client does not give up.
_QUEUE_RETRY_SECONDS = 5.0


class StoryService(story_service_pb2_grpc.StoryServiceServicer):
    """``storyloom.v1.StoryService``.

    Args:
        catalog: the served models.
        engine: takes admitted stories.
        encoders: threads for PNG encoding.
    """

    def __init__(self, catalog: ModelCatalog, engine: EngineClient, encoders: Executor) -> None:
        self._catalog = catalog
        self._engine = engine
        self._encoders = encoders
        self._draining = False

    def drain(self) -> None:
        """Refuses new stories from now on; those that are open go on."""
        self._draining = True

    async def GenerateStory(  # noqa: N802 - the name is the wire contract's
        self,
        request: story_service_pb2.GenerateStoryRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Streams a story. Errors before the first event are sent as trailers only, so that a client may retry."""
        try:
            self._check_open()
            plan = self._plan(request)
            story_id = str(uuid.uuid4())
            story = self._admit(story_id, plan)
        except errors.StoryError as error:
            log.info("story refused", extra=fields(reason=error.reason))
            await errors.abort(context, error)
        try:
            await self._stream(story_id, plan, story, context)
        except errors.StoryError as error:
            await errors.abort(context, error)

    async def _stream(
        self, story_id: str, plan: StoryPlan, story: OpenStory, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Tells the client everything about an admitted story. However this ends, the story's place becomes free."""
        log.info(
            "story accepted",
            extra=fields(story_id=story_id, model=plan.model, frames=len(plan.job.frames), queue=story.queue_position),
        )
        outcome = "abandoned"
        try:
            events = EventStream(story_id, plan, context, self._encoders)
            await events.accepted(story.queue_position)
            while not await events.tell(await story.next()):
                pass
            outcome = "done"
        except errors.StoryError as error:
            outcome = error.reason.lower()
            raise
        finally:
            self._engine.release(story_id)
            log.info("story closed", extra=fields(story_id=story_id, outcome=outcome))

    def _check_open(self) -> None:
        if self._draining:
            raise errors.draining()
        match self._engine.status:
            case EngineStatus.STARTING:
                raise errors.starting()
            case EngineStatus.LOST | EngineStatus.CLOSED:
                raise errors.engine_lost()

    def _plan(self, request: story_service_pb2.GenerateStoryRequest) -> StoryPlan:
        plan = plan_story(request.story, self._catalog)
        if isinstance(plan, StoryPlan):
            return plan
        raise errors.invalid_story(plan)

    def _admit(self, story_id: str, plan: StoryPlan) -> OpenStory:
        submit = messages.Submit(story_id, plan.model, plan.job, plan.preview_interval)
        try:
            return self._engine.submit(submit)
        except QueueFullError as error:
            raise errors.queue_full(error.waiting, _QUEUE_RETRY_SECONDS) from error


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """``storyloom.v1.ModelService``."""

    def __init__(self, catalog: ModelCatalog) -> None:
        self._response = model_service_pb2.ListModelsResponse(models=catalog.describe())

    async def ListModels(  # noqa: N802 - the name is the wire contract's
        self,
        request: model_service_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> model_service_pb2.ListModelsResponse:
        """The served models, the default one first."""
        return self._response
