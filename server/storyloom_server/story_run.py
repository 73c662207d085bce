"""One accepted story from its acceptance, or from its adoption after a crash, to its end.

The run sends the story's windows to the engine one after the other, stores what comes back before it tells anybody, and
sends a window again, from its last checkpoint, when the engine was lost. It knows nothing of calls and clients: readers
look at its ``log``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.consistency import scores
from storyloom_model.jobs import AnchorFrame, StoryJob
from storyloom_server import errors, messages
from storyloom_server.accepted_story import AcceptedStory
from storyloom_server.checkpoints import Checkpoints
from storyloom_server.event_log import EventLog
from storyloom_server.finished_frames import FinishedFrames
from storyloom_server.logs import fields
from storyloom_server.metrics import Outcome, Stage
from storyloom_server.round_pictures import networks_of, round_pictures_of
from storyloom_server.scheduler import Progress
from storyloom_server.shelf import Shelf
from storyloom_server.store import StoryState, journal, leases
from storyloom_server.store.errors import (
    StoryLostError,
)
from storyloom_server.story_error import StoryError
from storyloom_server.supervisor import EngineStatus
from storyloom_server.telling import Teller
from storyloom_server.tracing import StoryTrace
from storyloom_server.tries import Try, longer, tries_allowed, try_again
from storyloom_server.workshop import Workshop

log = logging.getLogger("storyloom.story")

# Messages that wait to be handled above which previews and progress are dropped: the store is slower than the engine.
_DROP_ABOVE = 32
# A story that was running when the engine died, this often: it runs alone; and it is given up.
_CRASHES_TO_RUN_ALONE = 2
_CRASHES_TO_GIVE_UP = 3


@dataclass(frozen=True, slots=True)
class _Stop:
    """Somebody wants the story to end now, with this error."""

    error: StoryError


_Inbox: TypeAlias = asyncio.Queue[messages.ToRun | _Stop]


class StoryRun:
    """Works on one story. ``run`` is its whole life; everything else is for those who look on."""

    def __init__(self, story: AcceptedStory, workshop: Workshop, trace: StoryTrace, queue_position: int) -> None:
        self.story = story
        self.left_queue = False
        self._workshop = workshop
        self._shelf = Shelf(workshop.store, workshop.metrics, story.story_id)
        self._checkpoints = Checkpoints(story.story_id, self._shelf)
        self._teller = Teller(story, self._shelf)
        self._began = time.monotonic() - max(0.0, time.time() - story.accepted_at if story.events else 0.0)
        self._frames = FinishedFrames(story, workshop, self._shelf, self._teller, self._began)
        self._rounds = round_pictures_of(story.plan, self._shelf)
        self._round = 0
        # Frames of the window under way that somebody is missing in: the best try so far, with its seed.
        self._lacking: dict[int, tuple[int, messages.FrameDone]] = {}
        self._trace = trace
        self._inbox: _Inbox = asyncio.Queue()
        self._crashes = story.crashes
        self._steps_before = 0
        self._steps_done = 0
        self._steps = story.steps
        self._stage: Stage = "queued"
        self._position = queue_position
        self._spec = story.spec(story.scheduling.deadline)
        self._timings = pb.StoryTimings()

    @property
    def log(self) -> EventLog:
        """What there is to read of the story."""
        return self._teller.log

    @property
    def progress(self) -> Progress:
        """How far the story is, for the admission of others."""
        return Progress(self._spec, done_steps=min(self._steps_done, self._spec.shape.steps))

    def stop(self, error: StoryError) -> None:
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
            first = await self._first_round()
            for number in range(self.story.rounds):
                self._round = number
                for window in self.story.windows:
                    made = Try(window)
                    if number >= first and not all(map(self._is_made, window.frames)):
                        await self._make(made)
                    self._steps_before += made.steps(self.story)
                    await self._make_again()
            await self._done()
        except StoryError as error:
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

    async def _fail(self, error: StoryError) -> str:
        """Ends the story with ``error``, and returns its outcome."""
        cancelled = error.reason == errors.CANCELLED
        state = StoryState.CANCELLED if cancelled else StoryState.FAILED
        await self._shelf.write(journal.finish, self.story.story_id, state, error=error.to_bytes())
        self._count("cancelled" if cancelled else "failed")
        if error.reason == errors.DEADLINE_EXCEEDED:
            self._workshop.metrics.deadline_missed()
        self.log.close(error)
        return error.reason.lower()

    async def _accepted(self) -> None:
        """The story's first event, or what an earlier server has done of it already."""
        await self._frames.take_up()
        if not self.story.events:
            plan = self.story.plan
            accepted = pb.StoryAccepted(
                settings=plan.settings,
                queue_position=self._position,
                frame_seeds=plan.frame_seeds,
                reference_notes=plan.reference_notes,
            )
            await self._teller.durable(accepted=accepted)
        await self._frames.take_over()

    async def _first_round(self) -> int:
        """The round to go on with.

        Raises:
            StoryError: other encoders looked at the frames that are taken over.
        """
        if self._rounds is None:
            return 0
        lent = {index: self._frames[index].seen for index in self.story.reused}
        networks = self._workshop.engine.encoders.get(self.story.plan.model, "").partition(":")[0]
        if any(networks_of(seen) != networks for seen in lent.values()):
            raise errors.references_outdated(self.story.parent_id)
        await self._rounds.take_up(lent, networks)
        return self._rounds.first_open([frame for window in self.story.windows for frame in window.frames])

    @property
    def _is_last_round(self) -> bool:
        return self._rounds is None or self._round == self._rounds.last

    def _is_made(self, frame: int) -> bool:
        """Whether a frame is there, as this round makes it."""
        if self._rounds is None or self._is_last_round:
            return frame in self._frames
        return self._rounds.has(self._round, frame)

    async def _make_again(self) -> None:
        """The frames of the window just made in which somebody was missing, each until nobody is or no try is left."""
        for frame in sorted(self._lacking):
            number = 0
            while frame in self._lacking:
                number += 1
                again = try_again(self.story, frame, number, self._frames.indexes)
                self._spec = longer(self._spec, self.story, again)
                self._steps += again.steps(self.story)
                await self._make(again)
                self._steps_before += again.steps(self.story)

    async def _make(self, made: Try) -> None:
        """One job in one round, through as many engine processes as it takes."""
        within = f"{self._round}." if self._rounds is not None else ""
        job_id = f"{self.story.story_id}.{within}{made.frames[0]}" + (f".{made.number}" if made.number else "")
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
        return made.job(self.story, anchors, self._rounds.references(self._round) if self._rounds else None)

    async def _submit(self, job_id: str, job: StoryJob, made: Try) -> None:
        # A further try is short, and no checkpoint of its own would be told from its window's.
        checkpoint, done_steps = None, 0
        if made.number == 0:
            checkpoint, done_steps = await self._checkpoints.last(made.frames[0], self._round)
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
            reads="" if story.plan.rounds is None else story.plan.rounds.pictures.reads,
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
        counted = await self._shelf.write(leases.count_crash, [self.story.story_id])
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
                await self._checkpoints.keep(made.frames[0], self._round, message)
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
        await self._shelf.write(journal.begin, self.story.story_id)
        await self._progress(pb.STORY_STAGE_ENCODING)

    async def _progress(self, stage: pb.StoryStage, *, step: int = 0, queue_position: int = 0) -> None:
        await self._teller.passing(
            progress=pb.StoryProgress(
                stage=stage,
                step=self._steps_before + step,
                steps=self._steps,
                queue_position=queue_position,
            )
        )

    async def _previews(self, made: Try, message: messages.Preview) -> None:
        step = self._round * made.steps(self.story) + message.step
        for index, pixels in zip(made.frames, message.frames, strict=True):
            png = await self._frames.png(pixels, self._seed(made, index))
            image = pb.Image(png=png, width=pixels.width, height=pixels.height)
            await self._teller.passing(preview=pb.FramePreview(frame_index=index, step=step, image=image))

    async def _frame(self, made: Try, message: messages.FrameDone) -> None:
        index = made.frames[message.frame_index]
        if self._is_made(index):
            return  # Stored before the engine was lost; the same picture again.
        if self._rounds is not None and not self._is_last_round:
            await self._rounds.keep(self._round, index, message.seen)
            return
        ours = (self._seed(made, index), message)
        # Of those that lack as many, the first: the caller chose its seed.
        seed, done = min(self._lacking.pop(index, ours), ours, key=lambda each: len(each[1].missing))
        if done.missing and made.number < tries_allowed(self.story):
            self._lacking[index] = seed, done
            return
        await self._frames.add(index, done, seed)

    def _seed(self, made: Try, index: int) -> int:
        """What a try makes a frame with."""
        return made.seed(self.story.plan.frame_seeds[index])

    async def _done(self) -> None:
        self._timings.total_seconds = time.monotonic() - self._began
        found = scores([frame.looks_by_name for frame in self._frames])
        consistency = [
            pb.CharacterConsistency(character=name, score=score) for name, score in found.items() if score is not None
        ]
        await self._teller.last(done=pb.StoryDone(timings=self._timings, consistency=consistency))
