"""The finished frames of an open story: looked at, stored, told of, and taken over from other stories."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Set
from datetime import UTC, datetime

import numpy as np
from google.protobuf import json_format

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server import errors, messages
from storyloom_server.accepted_story import AcceptedStory
from storyloom_server.frames import FinishedFrame
from storyloom_server.images import encode_png, provenance
from storyloom_server.shelf import Shelf
from storyloom_server.store import ArtifactKind
from storyloom_server.store.errors import BlobDamagedError, BlobMissingError, NotFoundError
from storyloom_server.telling import Teller
from storyloom_server.workshop import Workshop


class FinishedFrames:
    """Of one story.

    Args:
        story: the story.
        workshop: what all runs share.
        shelf: where frames are kept.
        teller: tells of them.
        began: monotonic seconds at which the story was accepted.
    """

    def __init__(self, story: AcceptedStory, workshop: Workshop, shelf: Shelf, teller: Teller, began: float) -> None:
        self._story = story
        self._workshop = workshop
        self._shelf = shelf
        self._teller = teller
        self._began = began
        self._frames: dict[int, FinishedFrame] = {}

    def __contains__(self, index: object) -> bool:
        return index in self._frames

    def __getitem__(self, index: int) -> FinishedFrame:
        return self._frames[index]

    @property
    def indexes(self) -> Set[int]:
        """Of those that are there."""
        return self._frames.keys()

    def __iter__(self) -> Iterator[FinishedFrame]:
        """In the story's order."""
        return (frame for _, frame in sorted(self._frames.items()))

    async def take_up(self) -> None:
        """Those that an earlier server has finished.

        Raises:
            StoryError: what is kept of them is damaged.
        """
        for event in self._story.events:
            if event.event.HasField("frame"):
                index = event.event.frame.frame_index
                try:
                    data = await self._shelf.load(ArtifactKind.LATENTS, index)
                except (NotFoundError, BlobMissingError, BlobDamagedError) as error:
                    raise errors.storage_damaged() from error
                self._frames[index] = FinishedFrame.from_bytes(data)

    async def take_over(self) -> None:
        """Copies frames of the parent story, so that this story needs it no more.

        Raises:
            StoryError: the parent is gone.
        """
        for index in sorted(self._story.reused - self._frames.keys()):
            try:
                picture = await self._shelf.load(ArtifactKind.PICTURE, index, self._story.parent_id)
                data = await self._shelf.load(ArtifactKind.LATENTS, index, self._story.parent_id)
            except (NotFoundError, BlobMissingError, BlobDamagedError) as error:
                raise errors.story_failed("PARENT_GONE", "the story that this one goes on from was deleted") from error
            await self._keep(index, FinishedFrame.from_bytes(data), picture, reused=True)

    async def add(self, index: int, made: messages.FrameDone, seed: int) -> None:
        """One that the engine has made, with this seed.

        Raises:
            StoryError: it may not be shown.
        """
        flags = await self._check_safety(made.pixels, index)
        frame = FinishedFrame(made.pixels.width, made.pixels.height, made.latents, made.looks, seed, made.seen)
        await self._keep(index, frame, await self.png(made.pixels, seed), flags=flags, missing=made.missing)

    async def png(self, pixels: messages.Pixels, seed: int) -> bytes:
        """A picture as a file that says where it comes from."""
        plan = self._story.plan
        written = provenance(
            model=plan.model,
            seed=seed,
            settings=json_format.MessageToDict(plan.settings, preserving_proto_field_name=True),
            story_id=self._story.story_id,
            created=datetime.fromtimestamp(self._story.accepted_at, UTC),
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workshop.encoders, encode_png, pixels, written)

    async def _check_safety(self, pixels: messages.Pixels, index: int) -> tuple[str, ...]:
        """What the safety checks find in a picture."""
        safety = self._workshop.safety
        if not safety.on:
            return ()
        picture = np.frombuffer(pixels.rgb, np.uint8).reshape(pixels.height, pixels.width, 3)
        path = f"story.frames[{index}]"
        decision = await asyncio.to_thread(safety.check_picture, picture, path, self._story.story_id)
        if not decision.allowed:
            raise errors.picture_blocked(index, decision.flags)
        return decision.flags

    async def _keep(
        self,
        index: int,
        frame: FinishedFrame,
        png: bytes,
        *,
        reused: bool = False,
        flags: tuple[str, ...] = (),
        missing: tuple[str, ...] = (),
    ) -> None:
        """Stores a frame, then tells of it: whoever hears of a frame can have it."""
        job_frame = self._story.plan.job.frames[index]
        await self._shelf.keep(ArtifactKind.LATENTS, index, frame.to_bytes())
        picture = await self._shelf.save(ArtifactKind.PICTURE, index, png)
        result = pb.FrameResult(
            frame_index=index,
            image=pb.Image(width=frame.width, height=frame.height),
            seed=job_frame.seed if frame.seed is None else frame.seed,
            prompt=job_frame.prompt.text,
            reused=reused,
            finished_seconds=time.monotonic() - self._began,
            safety_flag=", ".join(filter(None, (self._story.prompt_flags.get(index), *flags))),
            missing_characters=missing,
        )
        self._frames[index] = frame
        if not reused:
            self._workshop.metrics.picture_finished(frame.width, frame.height)
        await self._teller.durable(picture=picture, frame=result)
