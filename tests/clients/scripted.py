"""A real gRPC server whose stories follow a script, so that a test decides what a client meets."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import Image

from storyloom.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    story_pb2,
    story_service_pb2,
    story_service_pb2_grpc,
)

Request = story_service_pb2.GenerateStoryRequest
Response = story_service_pb2.GenerateStoryResponse
Script = Callable[[Request, Any], Iterator[Response]]
COLOURS = [(200, 30, 30), (30, 160, 60), (40, 60, 200), (220, 180, 30), (120, 40, 160), (20, 160, 170)]
TOTAL_SECONDS = 8.2


def png(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    """Returns a plain PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def image(index: int) -> story_service_pb2.Image:
    """Returns the picture of a frame: each frame has a colour of its own."""
    return story_service_pb2.Image(png=png(COLOURS[index % len(COLOURS)]), width=32, height=32)


def whole_story(request: Request, _context: Any) -> Iterator[Response]:
    """The script of a story where all goes well."""
    story = request.story
    seeds = [frame.seed if frame.HasField("seed") else 100 + index for index, frame in enumerate(story.frames)]
    for sequence, event in enumerate(_events(story, seeds), start=1):
        yield Response(story_id="story-1", sequence=sequence, **event)


def _events(story: story_pb2.Story, seeds: list[int]) -> Iterator[dict[str, Any]]:
    pb = story_service_pb2
    used = story_pb2.Settings(model="mini", steps=4, guidance_scale=5.1, width=32, height=32, seed=9)
    used.MergeFrom(story.settings)
    if not used.solver:
        used.solver = story_pb2.SOLVER_DDIM
    yield {"accepted": pb.StoryAccepted(settings=used, queue_position=1, frame_seeds=seeds)}
    yield {"progress": pb.StoryProgress(stage=pb.STORY_STAGE_QUEUED, steps=used.steps, queue_position=1)}
    yield {"progress": pb.StoryProgress(stage=pb.STORY_STAGE_ENCODING, steps=used.steps)}
    for step in range(1, used.steps + 1):
        yield {"progress": pb.StoryProgress(stage=pb.STORY_STAGE_DENOISING, step=step, steps=used.steps)}
        if used.preview_interval and step % used.preview_interval == 0:
            for index in range(len(story.frames)):
                yield {"preview": pb.FramePreview(frame_index=index, step=step, image=image(index))}
    # Frames need not finish in order.
    for index in reversed(range(len(story.frames))):
        prompt = f"full: {story.frames[index].prompt}"
        yield {"frame": pb.FrameResult(frame_index=index, image=image(index), seed=seeds[index], prompt=prompt)}
    yield {"done": pb.StoryDone(timings=pb.StoryTimings(queued_seconds=0.5, total_seconds=TOTAL_SECONDS))}


def failing(code: grpc.StatusCode, message: str, *details: Message) -> Script:
    """Returns the script of a story that is refused with a rich status."""

    def script(_request: Request, context: Any) -> Iterator[Response]:
        packed = []
        for detail in details:
            holder = AnyMessage()
            holder.Pack(detail)
            packed.append(holder)
        status = status_pb2.Status(code=code.value[0], message=message, details=packed)
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(code, message)
        yield Response()

    return script


class ScriptedServer(story_service_pb2_grpc.StoryServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Serves `script` to every story until it is replaced.

    :ivar requests: every request that came in.
    :ivar cancelled: set when a client gave a story up.
    :ivar metadata: of the last call.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.script: Script = whole_story
        self.requests: list[Request] = []
        self.metadata: dict[str, str | bytes] = {}
        self.cancelled = threading.Event()
        self._health = health.HealthServicer()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        story_service_pb2_grpc.add_StoryServiceServicer_to_server(self, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        address = "localhost:0"
        port = (
            self._server.add_secure_port(address, credentials)
            if credentials
            else self._server.add_insecure_port(address)
        )
        self.address = f"localhost:{port}"
        self.set_ready(True)
        self._server.start()

    def set_ready(self, ready: bool) -> None:
        """Says on the health service whether stories are taken; the server itself stays alive."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set("", serving)
        self._health.set("storyloom.v1.StoryService", serving if ready else not_serving)

    def GenerateStory(self, request: Request, context: Any) -> Iterator[Response]:  # noqa: N802
        """Follows the script."""
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        yield from self.script(request, context)

    def ListModels(  # noqa: N802
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """Lists one model."""
        model = model_service_pb2.Model(name="mini", description="small", is_default=True, adapters=["amsa-mask"])
        model.sizes.add(width=128, height=128)
        model.defaults.CopyFrom(story_pb2.Settings(steps=25, guidance_scale=5, solver=story_pb2.SOLVER_DDIM))
        model.limits.CopyFrom(
            model_service_pb2.Limits(max_frames=16, max_characters=4, max_steps=100, max_prompt_tokens=77)
        )
        model.solvers.extend([story_pb2.SOLVER_DDIM, story_pb2.SOLVER_EULER, 99])  # type: ignore[list-item]
        return model_service_pb2.ListModelsResponse(models=[model])

    def stop(self) -> None:
        """Stops at once."""
        self._server.stop(None).wait()


def until_cancelled(server: ScriptedServer) -> Script:
    """Returns the script of a story that never gets on, and tells `server.cancelled` when the client leaves."""

    def script(request: Request, context: Any) -> Iterator[Response]:
        gone = threading.Event()

        # In a callback, because a call that ends at once never comes back to the lines after the yield.
        def leave() -> None:
            gone.set()
            server.cancelled.set()

        if not context.add_callback(leave):
            leave()
        yield next(whole_story(request, context))
        gone.wait(20)

    return script
