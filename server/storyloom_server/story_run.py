"""One accepted story from its acceptance, or from its adoption after a crash, to its end.

The run sends the story's windows to the engine one after the other, stores what comes back before it tells anybody, and
sends a window again, from its last checkpoint, when the engine was lost. It knows nothing of calls and clients: readers
look at its ``log``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

import numpy as np
from google.protobuf import json_format

from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.consistency import scores
from storyloom_model.jobs import AnchorFrame, StoryJob
from storyloom_server import errors, messages
from storyloom_server.accepted_story import AcceptedStory
from storyloom_server.event_log import EventLog, LoggedEvent
from storyloom_server.frames import FinishedFrame
from storyloom_server.images import encode_png, provenance
from storyloom_server.logs import fields
from storyloom_server.metrics import Metrics, Outcome, Stage
from storyloom_server.safety import Safety
from storyloom_server.scheduler import Progress
from storyloom_server.store import Artifact, ArtifactKind, NewEvent, Store, StoryState, Transaction, journal, leases
from storyloom_server.store.errors import (
    BlobDamagedError,
    BlobMissingError,
    NotFoundError,
    StorageFullError,
    StoreBusyError,
    StoreUnavailableError,
    StoryLostError,
)
from storyloom_server.supervisor import EngineStatus, Supervisor
from storyloom_server.tracing import StoryTrace
from storyloom_server.tries import Try, longer, tries_allowed, try_again

log = logging.getLogger("storyloom.story")

_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")

# Messages that wait to be handled above which previews and progress are dropped: the store is slower than the engine.
_DROP_ABOVE = 32
# Event numbers are reserved in blocks, so that progress costs no write.
_RESERVE = 256
# A story that was running when the engine died, this often: it runs alone; and it is given up.
_CRASHES_TO_RUN_ALONE = 2
_CRASHES_TO_GIVE_UP = 3
_LONGEST_STORE_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all runs share. At least ``checkpoint_interval`` steps (0: no checkpoints) and ``checkpoint_seconds`` lie
    between two checkpoints of a story.
    """

    store: Store
    engine: Supervisor
    encoders: Executor
    metrics: Metrics
    safety: Safety
    checkpoint_interval: int
    checkpoint_seconds: float


@dataclass(frozen=True, slots=True)
class _Stop:
    """Somebody wants the story to end now, with this error."""

    error: errors.StoryError


_Inbox: TypeAlias = asyncio.Queue[messages.ToRun | _Stop]


class StoryRun:
    """Works on one story. ``run`` is its whole life; everything else is for those who look on."""

    def __init__(self, story: AcceptedStory, workshop: Workshop, trace: StoryTrace, queue_position: int) -> None:
        self.story = story
        self.log = EventLog(story.events)
        self.left_queue = False
        self._workshop = workshop
        self._trace = trace
        self._inbox: _Inbox = asyncio.Queue()
        self._sequence = max(story.sequence_reserved if story.events else 0, self.log.last_sequence)
        self._reserved = story.sequence_reserved
        self._crashes = story.crashes
        self._frames: dict[int, FinishedFrame] = {}
        # Frames of the window under way that somebody is missing in: the best try so far, with its seed.
        self._lacking: dict[int, tuple[int, messages.FrameDone]] = {}
        self._began = time.monotonic() - max(0.0, time.time() - story.accepted_at if story.events else 0.0)
        self._steps_before = 0
        self._steps_done = 0
        self._steps = story.steps
        self._stage: Stage = "queued"
        self._position = queue_position
        self._spec = story.spec(story.scheduling.deadline)
        self._timings = pb.StoryTimings()

    @property
    def progress(self) -> Progress:
        """How far the story is, for the admission of others."""
        return Progress(self._spec, done_steps=min(self._steps_done, self._spec.shape.steps))

    def stop(self, error: errors.StoryError) -> None:
        """Ends the story with ``error`` as soon as may be."""
        self._inbox.put_nowait(_Stop(error))

    async def run(self) -> None:
        """Makes every frame. However this ends, it ends in the store and in the log, unless the story is left to a
        later server: when this one is cancelled, or when another has taken the story over.
        """
        outcome = "left"
        try:
            outcome = await self._run()
        except StoryLostError:
            outcome = "taken over"
            self._count("lost")
            self.log.close(errors.story_moved())
        finally:
            self._trace.end(outcome, error=None if outcome == "done" else outcome)
            log.info("story closed", extra=fields(story_id=self.story.story_id, outcome=outcome))

    def _count(self, outcome: Outcome) -> None:
        metrics, model = self._workshop.metrics, self.story.plan.model
        metrics.story_finished(model, outcome, time.monotonic() - self._began)
        if outcome == "cancelled":
            metrics.story_cancelled(self._stage)

    async def _run(self) -> str:
        try:
            await self._accepted()
            await self._take_over_frames()
            for window in self.story.windows:
                first = Try(window)
                if not all(frame in self._frames for frame in window.frames):
                    await self._make(first)
                self._steps_before += first.steps(self.story)
                await self._make_again()
            await self._done()
        except errors.StoryError as error:
            return await self._fail(error)
        except StoryLostError:
            raise
        except Exception:
            # Left open, it would break again in every server that adopts it, and its readers would wait for ever.
            log.exception("a story's run broke", extra=fields(story_id=self.story.story_id))
            return await self._fail(
                errors.story_failed("SERVER_ERROR", "the server made a mistake with this story; see its log")
            )
        self._count("done")
        return "done"

    async def _fail(self, error: errors.StoryError) -> str:
        """Ends the story with ``error``, and returns its outcome."""
        cancelled = error.reason == errors.CANCELLED
        state = StoryState.CANCELLED if cancelled else StoryState.FAILED
        await self._write(journal.finish, self.story.story_id, state, error=error.to_bytes())
        self._count("cancelled" if cancelled else "failed")
        if error.reason == errors.DEADLINE_EXCEEDED:
            self._workshop.metrics.deadline_missed()
        self.log.close(error)
        return error.reason.lower()

    async def _accepted(self) -> None:
        """The story's first event, and what an earlier server has done of it already."""
        for event in self.story.events:
            if event.event.HasField("frame"):
                index = event.event.frame.frame_index
                try:
                    data = await self._load(ArtifactKind.LATENTS, index)
                except (NotFoundError, BlobMissingError, BlobDamagedError) as error:
                    raise errors.storage_damaged() from error
                self._frames[index] = FinishedFrame.from_bytes(data)
        if not self.story.events:
            plan = self.story.plan
            accepted = pb.StoryAccepted(
                settings=plan.settings,
                queue_position=self._position,
                frame_seeds=plan.frame_seeds,
                reference_notes=plan.reference_notes,
            )
            await self._tell_durable(accepted=accepted)

    async def _take_over_frames(self) -> None:
        """Copies frames of the parent story, so that this story needs it no more."""
        for index in sorted(self.story.reused - self._frames.keys()):
            try:
                picture = await self._load(ArtifactKind.PICTURE, index, self.story.parent_id)
                data = await self._load(ArtifactKind.LATENTS, index, self.story.parent_id)
            except (NotFoundError, BlobMissingError, BlobDamagedError) as error:
                raise errors.story_failed("PARENT_GONE", "the story that this one goes on from was deleted") from error
            await self._keep_frame(index, FinishedFrame.from_bytes(data), picture, reused=True)

    async def _make_again(self) -> None:
        """The frames of the window just made in which somebody was missing, each until nobody is or no try is left."""
        for frame in sorted(self._lacking):
            number = 0
            while frame in self._lacking:
                number += 1
                again = try_again(self.story, frame, number, self._frames.keys())
                self._spec = longer(self._spec, self.story, again)
                self._steps += again.steps(self.story)
                await self._make(again)
                self._steps_before += again.steps(self.story)

    async def _make(self, made: Try) -> None:
        """One job, through as many engine processes as it takes."""
        job_id = f"{self.story.story_id}.{made.frames[0]}" + (f".{made.number}" if made.number else "")
        job = self._job(made)
        try:
            await self._submit(job_id, job, made)
            while not isinstance(message := await self._next(), messages.JobFinished):
                if isinstance(message, messages.EngineLost):
                    await self._count_loss(message)
                    await self._submit(job_id, job, made)
                else:
                    await self._handle(made, message)
        finally:
            self._workshop.engine.release(job_id)
        self._add_stages(message)

    def _add_stages(self, finished: messages.JobFinished) -> None:
        """Adds a window's stages, which followed each other, to the timings, the metrics and the trace."""
        stages: tuple[tuple[Literal["encode", "denoise", "decode"], float], ...] = (
            ("encode", finished.encode_seconds),
            ("denoise", finished.denoise_seconds),
            ("decode", finished.decode_seconds),
        )
        began = time.monotonic() - sum(seconds for _, seconds in stages)
        for stage, seconds in stages:
            self._workshop.metrics.stage_finished(stage, self.story.plan.model, seconds)
            self._trace.stage(stage, began, began + seconds)
            began += seconds
        self._timings.encode_seconds += finished.encode_seconds
        self._timings.denoise_seconds += finished.denoise_seconds
        self._timings.decode_seconds += finished.decode_seconds

    def _job(self, made: Try) -> StoryJob:
        frames = self.story.plan.job.frames
        anchors = []
        for index in made.window.anchors:
            finished, own = self._frames[index], frames[index]
            seed = own.seed if finished.seed is None else finished.seed
            anchors.append(AnchorFrame(own.prompt, seed, finished.latents))
        return made.job(self.story, anchors)

    async def _submit(self, job_id: str, job: StoryJob, made: Try) -> None:
        # A further try is short, and no checkpoint of its own would be told from its window's.
        checkpoint, done_steps = await self._last_checkpoint(made) if made.number == 0 else (None, 0)
        await self._until_ready()
        story = self.story
        submit = messages.Submit(
            job_id=job_id,
            model=story.plan.model,
            job=job,
            scheduling=replace(story.scheduling, alone=self._crashes >= _CRASHES_TO_RUN_ALONE),
            preview_interval=story.plan.preview_interval,
            checkpoint_interval=self._workshop.checkpoint_interval if made.number == 0 else 0,
            checkpoint_seconds=self._workshop.checkpoint_seconds,
            checkpoint=checkpoint,
            done_steps=done_steps,
        )
        self._workshop.engine.submit(submit, self._put)

    async def _until_ready(self) -> None:
        """Waits for an engine that takes jobs, unless the story is stopped before."""
        engine = self._workshop.engine
        while engine.status is not EngineStatus.READY:
            ready = asyncio.ensure_future(engine.wait_for(EngineStatus.READY))
            stopped = asyncio.ensure_future(self._next())
            try:
                await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    stopped.result()
                elif ready.result() is not EngineStatus.READY:
                    # The server is about to leave; a later one goes on with the story.
                    await asyncio.Event().wait()
            finally:
                ready.cancel()
                stopped.cancel()

    async def _next(self) -> messages.ToRun:
        """The next message about the job.

        Raises:
            StoryError: the story was stopped.
        """
        message = await self._inbox.get()
        if isinstance(message, _Stop):
            raise message.error
        return message

    def _put(self, message: messages.ToRun) -> None:
        """Takes a message from the engine, unless it can be done without and too many wait already."""
        expendable = isinstance(message, messages.Preview | messages.Stepped | messages.QueuePosition)
        if not (expendable and self._inbox.qsize() >= _DROP_ABOVE):
            self._inbox.put_nowait(message)

    async def _count_loss(self, lost: messages.EngineLost) -> None:
        if not lost.suspect:
            return
        counted = await self._write(leases.count_crash, [self.story.story_id])
        self._crashes = counted.get(self.story.story_id, self._crashes)
        if self._crashes >= _CRASHES_TO_GIVE_UP:
            raise errors.engine_crashed(self._crashes)

    async def _handle(self, made: Try, message: messages.ToRun) -> None:
        match message:
            case messages.QueuePosition():
                if message.position != self._position:
                    self._position = message.position
                    await self._progress(pb.STORY_STAGE_QUEUED, queue_position=message.position)
            case messages.EncodingStarted():
                self._stage = "encoding"
                await self._on_encoding()
            case messages.Stepped():
                self._stage = "denoising"
                self._steps_done = self._steps_before + message.step
                self._trace_step(message)
                await self._progress(pb.STORY_STAGE_DENOISING, step=message.step)
            case messages.DecodingStarted():
                self._stage = "decoding"
                await self._progress(pb.STORY_STAGE_DECODING, step=made.steps(self.story))
            case messages.Preview():
                await self._previews(made, message)
            case messages.Checkpoint():
                await self._keep_checkpoint(made, message)
            case messages.FrameDone():
                await self._frame(made, message)
            case messages.JobFailed():
                raise errors.job_failed(message.reason, message.message)

    def _trace_step(self, message: messages.Stepped) -> None:
        if message.batch_jobs:
            now, step = time.monotonic(), self._steps_done
            self._trace.step(step, now - message.seconds, now, rows=message.batch_rows, stories=message.batch_jobs)

    async def _on_encoding(self) -> None:
        if not self.left_queue:
            self.left_queue = True
            self._timings.queued_seconds = time.monotonic() - self._began
            self._workshop.metrics.story_started(self._timings.queued_seconds)
            self._trace.stage("queue", self._began, time.monotonic())
        # Again after each loss of the engine, which puts the story back among those that wait.
        await self._write(journal.begin, self.story.story_id)
        await self._progress(pb.STORY_STAGE_ENCODING)

    async def _progress(self, stage: pb.StoryStage, *, step: int = 0, queue_position: int = 0) -> None:
        await self._tell_passing(
            progress=pb.StoryProgress(
                stage=stage,
                step=self._steps_before + step,
                steps=self._steps,
                queue_position=queue_position,
            )
        )

    async def _previews(self, made: Try, message: messages.Preview) -> None:
        for index, pixels in zip(made.frames, message.frames, strict=True):
            png = await self._encode(pixels, made.seed(self.story.plan.frame_seeds[index]))
            image = pb.Image(png=png, width=pixels.width, height=pixels.height)
            await self._tell_passing(preview=pb.FramePreview(frame_index=index, step=message.step, image=image))

    async def _keep_checkpoint(self, made: Try, message: messages.Checkpoint) -> None:
        data = message.step.to_bytes(4, "little") + message.data
        await self._keep(ArtifactKind.CHECKPOINT, made.frames[0], data)

    async def _last_checkpoint(self, made: Try) -> tuple[bytes | None, int]:
        """The newest checkpoint of a window and the steps in it; None and 0 when there is none."""
        try:
            data = await self._load(ArtifactKind.CHECKPOINT, made.frames[0])
        except NotFoundError:
            return None, 0
        except (BlobMissingError, BlobDamagedError) as error:
            log.error("a checkpoint is of no use", extra=fields(story_id=self.story.story_id, why=error))
            return None, 0
        return data[4:], int.from_bytes(data[:4], "little")

    async def _frame(self, made: Try, message: messages.FrameDone) -> None:
        index = made.frames[message.frame_index]
        if index in self._frames:
            return  # Stored before the engine was lost; the same picture again.
        seed = made.seed(self.story.plan.frame_seeds[index])
        best = self._lacking.pop(index, (seed, message))
        # Of those that lack as many, the first: the caller chose its seed.
        best = min(best, (seed, message), key=lambda each: len(each[1].missing))
        if best[1].missing and made.number < tries_allowed(self.story):
            self._lacking[index] = best
            return
        seed, done = best
        flags = await self._check_safety(done.pixels, index)
        frame = FinishedFrame(done.pixels.width, done.pixels.height, done.latents, done.looks, seed)
        await self._keep_frame(
            index, frame, await self._encode(done.pixels, seed), flags=flags, missing=done.missing
        )  # fmt: skip

    async def _check_safety(self, pixels: messages.Pixels, index: int) -> tuple[str, ...]:
        """What the safety checks find in a picture.

        Raises:
            StoryError: it may not be shown.
        """
        safety = self._workshop.safety
        if not safety.on:
            return ()
        picture = np.frombuffer(pixels.rgb, np.uint8).reshape(pixels.height, pixels.width, 3)
        path = f"story.frames[{index}]"
        decision = await asyncio.to_thread(safety.check_picture, picture, path, self.story.story_id)
        if not decision.allowed:
            raise errors.picture_blocked(index, decision.flags)
        return decision.flags

    async def _keep_frame(
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
        job_frame = self.story.plan.job.frames[index]
        await self._keep(ArtifactKind.LATENTS, index, frame.to_bytes())
        store, story_id = self._workshop.store, self.story.story_id
        picture = await self._persist(lambda: store.save(story_id, ArtifactKind.PICTURE, index, png))
        result = pb.FrameResult(
            frame_index=index,
            image=pb.Image(width=frame.width, height=frame.height),
            seed=job_frame.seed if frame.seed is None else frame.seed,
            prompt=job_frame.prompt.text,
            reused=reused,
            finished_seconds=time.monotonic() - self._began,
            safety_flag=", ".join(filter(None, (self.story.prompt_flags.get(index), *flags))),
            missing_characters=missing,
        )
        self._frames[index] = frame
        if not reused:
            self._workshop.metrics.picture_finished(frame.width, frame.height)
        await self._tell_durable(picture=picture, frame=result)

    async def _done(self) -> None:
        self._timings.total_seconds = time.monotonic() - self._began
        found = scores([frame.looks_by_name for _, frame in sorted(self._frames.items())])
        consistency = [
            pb.CharacterConsistency(character=name, score=score) for name, score in found.items() if score is not None
        ]
        event = self._event(done=pb.StoryDone(timings=self._timings, consistency=consistency))
        stored = NewEvent(event.sequence, event.SerializeToString())
        await self._write(journal.finish, self.story.story_id, StoryState.FINISHED, events=[stored])
        self.log.add(LoggedEvent(event, durable=True))
        self.log.close()

    async def _tell_durable(self, *, picture: Artifact | None = None, **event: Any) -> None:
        message = self._event(**event)
        stored = NewEvent(message.sequence, message.SerializeToString(), picture)
        await self._write(journal.append, self.story.story_id, [stored])
        self.log.add(LoggedEvent(message, durable=True, picture=picture.key if picture else ""))

    async def _tell_passing(self, **event: Any) -> None:
        if self._sequence >= self._reserved:
            upto = self._sequence + _RESERVE
            await self._write(journal.reserve, self.story.story_id, upto)
            self._reserved = upto
        self.log.add(LoggedEvent(self._event(**event), durable=False))

    def _event(self, **event: Any) -> pb.GenerateStoryResponse:
        self._sequence += 1
        return pb.GenerateStoryResponse(story_id=self.story.story_id, sequence=self._sequence, **event)

    async def _encode(self, pixels: messages.Pixels, seed: int) -> bytes:
        plan = self.story.plan
        written = provenance(
            model=plan.model,
            seed=seed,
            settings=json_format.MessageToDict(plan.settings, preserving_proto_field_name=True),
            story_id=self.story.story_id,
            created=datetime.fromtimestamp(self.story.accepted_at, UTC),
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workshop.encoders, encode_png, pixels, written)

    async def _keep(self, kind: ArtifactKind, position: int, data: bytes) -> None:
        store, story_id = self._workshop.store, self.story.story_id
        await self._persist(lambda: store.keep(story_id, kind, position, data))

    async def _load(self, kind: ArtifactKind, position: int, story_id: str = "") -> bytes:
        """What was kept of this story or another.

        Raises:
            NotFoundError: there is nothing of this kind at this position.
        """
        store = self._workshop.store
        kept = await self._persist(lambda: store.read(journal.artifacts, story_id or self.story.story_id, kind))
        found = next((artifact for artifact in kept if artifact.position == position), None)
        if found is None:
            raise NotFoundError(kind, str(position))
        return await self._persist(lambda: store.load(found.key))

    async def _write(
        self,
        operation: Callable[Concatenate[Transaction, _Parameters], _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        began = time.monotonic()
        result = await self._persist(lambda: self._workshop.store.write(operation, *args, **kwargs))
        self._workshop.metrics.store_written(time.monotonic() - began)
        return result

    async def _persist(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """Waits for the store as long as it takes: a full disk or a locked database must not cost a story."""
        pause = 0.1
        while True:
            try:
                return await call()
            except (StorageFullError, StoreBusyError, StoreUnavailableError) as error:
                log.error("the store refuses; the story waits", extra=fields(story_id=self.story.story_id, why=error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_STORE_PAUSE_SECONDS)
