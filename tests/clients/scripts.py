"""What a scripted server does with a story: goes through it, refuses it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from PIL import Image

from storyloom.v1 import story_pb2, story_service_pb2

Request = story_service_pb2.GenerateStoryRequest
Response = story_service_pb2.GenerateStoryResponse
Script = Callable[[Any, Any], Iterator[Response]]
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
        frame = pb.FrameResult(frame_index=index, image=image(index), seed=seeds[index], prompt=prompt)
        frame.finished_seconds = TOTAL_SECONDS - index
        yield {"frame": frame}
    done = pb.StoryDone(timings=pb.StoryTimings(queued_seconds=0.5, total_seconds=TOTAL_SECONDS))
    for character in story.characters:
        done.consistency.add(character=character.name, score=0.875)
    yield {"done": done}


Refusal = Callable[[Any], None]


def refusing(
    code: grpc.StatusCode, message: str, *details: Message, trailers: Sequence[tuple[str, str]] = ()
) -> Refusal:
    """Returns what ends a call with a rich status, given its context."""
    packed = []
    for detail in details:
        holder = AnyMessage()
        holder.Pack(detail)
        packed.append(holder)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)

    def refuse(context: Any) -> None:
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString()), *trailers])
        context.abort(code, message)

    return refuse


def failing(code: grpc.StatusCode, message: str, *details: Message, trailers: Sequence[tuple[str, str]] = ()) -> Script:
    """Returns the script of a story that is refused with a rich status."""
    refuse = refusing(code, message, *details, trailers=trailers)

    def script(_request: Request, context: Any) -> Iterator[Response]:
        refuse(context)
        yield Response()

    return script


def retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    """Returns the detail that asks for a pause."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return info
