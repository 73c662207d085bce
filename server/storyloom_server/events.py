"""Turns what happens to one story into the numbered events of its stream."""

import asyncio
import time
from concurrent.futures import Executor
from typing import Any

import grpc

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server import errors, messages
from storyloom_server.images import encode_png
from storyloom_server.validate import StoryPlan

_Context = grpc.aio.ServicerContext[pb.GenerateStoryRequest, pb.GenerateStoryResponse]


class EventStream:
    """Writes one story's events, in order, with sequence numbers from 1.

    Args:
        story_id: goes into every event.
        plan: the validated story.
        context: the call to write to. A slow reader makes ``write`` wait.
        encoders: threads that encode PNG files, so that the event loop does not.
    """

    def __init__(self, story_id: str, plan: StoryPlan, context: _Context, encoders: Executor) -> None:
        self._story_id = story_id
        self._plan = plan
        self._context = context
        self._encoders = encoders
        self._sequence = 0
        self._began = time.monotonic()
        self._queued_seconds = 0.0

    async def accepted(self, queue_position: int) -> None:
        """The story is in the queue."""
        await self._write(
            accepted=pb.StoryAccepted(
                settings=self._plan.settings, queue_position=queue_position, frame_seeds=self._plan.frame_seeds
            )
        )

    async def tell(self, message: messages.ToReader) -> bool:
        """Writes the events of one message; True when it was the story's last.

        Raises:
            StoryError: the story ends without being done.
        """
        match message:
            case messages.QueuePosition():
                await self._progress(pb.STORY_STAGE_QUEUED, queue_position=message.position)
            case messages.EncodingStarted():
                self._queued_seconds = time.monotonic() - self._began
                await self._progress(pb.STORY_STAGE_ENCODING)
            case messages.Stepped():
                await self._progress(pb.STORY_STAGE_DENOISING, step=message.step)
            case messages.DecodingStarted():
                await self._progress(pb.STORY_STAGE_DECODING, step=self._plan.job.steps)
            case messages.Preview():
                await self._preview(message)
            case messages.FrameDone():
                await self._frame(message)
            case messages.StoryFinished():
                await self._done(message)
                return True
            case messages.StoryFailed():
                raise errors.story_failed(message.reason, message.message)
            case messages.EngineLost():
                raise errors.engine_lost()
            case messages.Dropped():
                raise errors.draining()
        return False

    async def _progress(self, stage: pb.StoryStage, *, step: int = 0, queue_position: int = 0) -> None:
        await self._write(
            progress=pb.StoryProgress(stage=stage, step=step, steps=self._plan.job.steps, queue_position=queue_position)
        )

    async def _preview(self, message: messages.Preview) -> None:
        for index, pixels in enumerate(message.frames):
            image = await self._image(pixels, index)
            await self._write(preview=pb.FramePreview(frame_index=index, step=message.step, image=image))

    async def _frame(self, message: messages.FrameDone) -> None:
        index = message.frame_index
        frame = self._plan.job.frames[index]
        await self._write(
            frame=pb.FrameResult(
                frame_index=index,
                image=await self._image(message.pixels, index),
                seed=frame.seed,
                prompt=frame.prompt.text,
            )
        )

    async def _done(self, message: messages.StoryFinished) -> None:
        timings = pb.StoryTimings(
            queued_seconds=self._queued_seconds,
            encode_seconds=message.encode_seconds,
            denoise_seconds=message.denoise_seconds,
            decode_seconds=message.decode_seconds,
            total_seconds=time.monotonic() - self._began,
        )
        await self._write(done=pb.StoryDone(timings=timings))

    async def _image(self, pixels: messages.Pixels, frame_index: int) -> pb.Image:
        provenance = {
            "Model": self._plan.model,
            "Seed": str(self._plan.job.frames[frame_index].seed),
        }
        loop = asyncio.get_running_loop()
        png = await loop.run_in_executor(self._encoders, encode_png, pixels, provenance)
        return pb.Image(png=png, width=pixels.width, height=pixels.height)

    async def _write(self, **event: Any) -> None:
        self._sequence += 1
        await self._context.write(pb.GenerateStoryResponse(story_id=self._story_id, sequence=self._sequence, **event))
