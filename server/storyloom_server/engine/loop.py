"""The engine's loop: receive, do the next piece of work that the scheduler names, report.

It is single-threaded and owns every model and every job's tensors. A job that raises or goes non-finite is failed
alone; a batch that runs out of memory is tried again in smaller ones. Cancelled jobs leave between two pieces of work.
"""

from __future__ import annotations

import logging
import pickle
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from storyloom_model.jobs import JobError
from storyloom_server import messages
from storyloom_server.engine.backend import Backend, State
from storyloom_server.engine.pace import CheckpointPace
from storyloom_server.engine.pictures import frame_done, pixels
from storyloom_server.engine.references import ReferenceQueue, fingerprint
from storyloom_server.engine.shapes import story_spec
from storyloom_server.logs import failure, fields
from storyloom_server.scheduler import (
    CostModel,
    Decode,
    Encode,
    MemoryModel,
    Preview,
    Scheduler,
    Status,
    Step,
    StoryShape,
    Work,
)

log = logging.getLogger("storyloom.engine")

_BEAT_SECONDS = 1.0


@dataclass(slots=True)
class _Job:
    """A job of the engine, and its ``shape``. ``marks`` are monotonic seconds at which its stages began.
    ``state`` and ``pace`` come with encoding, ``latents`` of each frame with the last step."""

    submit: messages.Submit
    shape: StoryShape
    marks: dict[Status, float] = field(default_factory=dict)
    state: State | None = None
    pace: CheckpointPace | None = None
    latents: Sequence[bytes] = ()

    def rows_of(self, step: int) -> int:
        """Rows of the step that was the ``step``-th."""
        return self.shape.loads_after(step - 1)[0][1].rows

    @property
    def encoded(self) -> State:
        """The state of a job that is past its encoding."""
        if self.state is None:
            raise RuntimeError(f"job {self.submit.job_id} has no state yet")
        return self.state


class ServiceGoneError(Exception):
    """The other end of the pipe is closed: nobody is left to work for."""


class Engine:
    """Does the jobs that come in through ``connection`` until it is told to leave or the other side is gone.

    Args:
        backends: loaded models by name.
        load: loads another one, or takes the one that is loaded, and warms it up.
        connection: to the service.
        scheduler: decides what comes next.
        cost: what the scheduler learns step times with; the service gets a copy of what it knows.
        memory: what it learns memory with.
    """

    def __init__(
        self,
        backends: dict[str, Backend],
        load: Callable[[messages.LoadModel, Backend | None], Backend],
        connection: Connection[Any, Any],
        scheduler: Scheduler,
        cost: CostModel,
        memory: MemoryModel,
    ) -> None:
        self._backends = backends
        self._load = load
        self._connection = connection
        # The connection's own ``poll`` makes a selector for each call, which costs more than all the rest of it.
        self._incoming = select.poll()
        self._incoming.register(connection.fileno(), select.POLLIN)
        self._scheduler = scheduler
        self._cost = cost
        self._memory = memory
        self._jobs: dict[str, _Job] = {}
        self._references = ReferenceQueue(backends, self._tell)
        self._outgoing: list[messages.FromEngine] = []
        self._positions: dict[str, int] = {}
        self._last_sent = 0.0
        self._leaving = False

    def run(self, ready: messages.Ready) -> None:
        """Says ``ready``, then loops. Returns after ``Shutdown``.

        Raises:
            ServiceGoneError: the service process is gone.
        """
        self._tell(ready)
        work: Work | None = None
        while not self._leaving:
            self._flush()
            busy = work is not None or self._references.waiting
            self._receive(0.0 if busy else self._scheduler.wait_seconds() or _BEAT_SECONDS)
            self._fail_expired()
            if self._references.begin_next():
                # At once: should this one take the process down, the service knows that it was the turn of it.
                self._flush()
                self._references.encode_next()
            work = self._scheduler.next_work()
            self._do(work)

    def _receive(self, wait_seconds: float) -> None:
        """Takes every message that is there, and waits so long for the first."""
        while not self._leaving and (message := self._next_message(wait_seconds)) is not None:
            wait_seconds = 0.0
            match message:
                case messages.Submit():
                    self._submit(message)
                case messages.EncodeReferences():
                    self._references.add(message)
                case messages.Cancel():
                    self._references.drop(message.job_id)
                    self._cancel(message.job_id)
                case messages.LoadModel():
                    self._load_model(message)
                case messages.UnloadModel():
                    self._backends.pop(message.name, None)
                case messages.Shutdown():
                    self._leaving = True

    def _next_message(self, wait_seconds: float) -> messages.ToEngine | None:
        try:
            return self._connection.recv() if self._incoming.poll(1000 * wait_seconds) else None
        except (EOFError, OSError) as error:
            raise ServiceGoneError from error

    def _submit(self, submit: messages.Submit) -> None:
        if submit.model not in self._backends:
            self._tell(messages.JobFailed(submit.job_id, "MODEL_GONE", f"model {submit.model} is not loaded any more"))
            return
        if submit.job_id in self._jobs:
            # Not answered: the answer would be taken for the end of the job that is here, which goes on.
            log.error("a job was submitted twice; the second is ignored", extra=fields(job_id=submit.job_id))
            return
        try:
            spec = story_spec(submit, self._backends[submit.model])
        except ValueError as error:
            self._tell(messages.JobFailed(submit.job_id, "ENGINE_ERROR", f"the job makes no sense: {error}"))
            return
        self._jobs[submit.job_id] = _Job(submit, spec.shape)
        self._scheduler.submit(spec)
        self._tell_positions()

    def _cancel(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return
        self._drop(job_id, Status.CANCELLED)
        log.info("job cancelled", extra=fields(job_id=job_id, rows_freed=job.shape.rows, open=len(self._jobs)))
        self._tell_positions()

    def _load_model(self, message: messages.LoadModel) -> None:
        began = time.monotonic()
        problem = ""
        try:
            self._backends[message.name] = self._load(message, self._backends.get(message.name))
        except Exception as error:
            log.exception("a model cannot be loaded", extra=fields(model=message.name))
            problem = f"{type(error).__name__}: {error}"
        encoders = fingerprint(self._backends.get(message.name))
        self._tell(messages.ModelLoaded(message.name, time.monotonic() - began, problem, encoders))

    def _do(self, work: Work | None) -> None:
        match work:
            case Encode():
                self._encode(work.story_id)
            case Step():
                self._step(work.story_ids)
            case Preview():
                self._preview(work.story_id)
            case Decode():
                self._decode(work.story_id, work.frames)

    def _encode(self, job_id: str) -> None:
        job = self._jobs[job_id]
        backend = self._backends[job.submit.model]
        began = job.marks[Status.ENCODING] = time.monotonic()
        self._tell(messages.EncodingStarted(job_id))
        # At once: should this job take the process down, the service knows that it had left the queue.
        self._flush()
        self._tell_positions()
        with self._failing_alone(job_id):
            job.state = self._start(backend, job.submit)
            job.marks[Status.DENOISING] = now = time.monotonic()
            job.pace = CheckpointPace(
                job.submit.checkpoint_interval, job.submit.checkpoint_seconds, job.state.step_index, now
            )
            seconds = now - began
            self._scheduler.encoded(job_id, seconds=seconds, done_steps=job.state.step_index)
            self._tell(messages.Stepped(job_id, job.state.step_index))
            if job.state.done:
                self._start_decoding(backend, job_id, job)

    def _start(self, backend: Backend, submit: messages.Submit) -> State:
        """A fresh state, or that of the checkpoint. A checkpoint that does not fit costs only the steps in it."""
        if submit.checkpoint is not None:
            try:
                state: State = backend.restore(submit.job, submit.checkpoint)
            except ValueError as error:
                log.error(
                    "a checkpoint is of no use; the job begins anew",
                    extra=fields(job_id=submit.job_id, **failure(error)),
                )
            else:
                return state
        return backend.encode(submit.job)  # type: ignore[no-any-return]  # A State by the backend's contract.

    def _step(self, job_ids: Sequence[str]) -> None:
        backend = self._backends[self._jobs[job_ids[0]].submit.model]
        states = [self._jobs[job_id].encoded for job_id in job_ids]
        steps_before = [state.step_index for state in states]
        began = time.monotonic()
        try:
            backend.step(states)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not take other jobs with it.
            moved = [state.step_index > step for state, step in zip(states, steps_before, strict=True)]
            behind = [job_id for job_id, has_moved in zip(job_ids, moved, strict=True) if not has_moved]
            self._after_failed_step(backend, job_ids, behind, error)
        seconds = time.monotonic() - began
        stepped = {
            job_id: state
            for job_id, state, step in zip(job_ids, states, steps_before, strict=True)
            if state.step_index > step and job_id in self._jobs
        }
        if not stepped:
            return
        self._report_batch(backend, stepped, seconds)
        for job_id, state in stepped.items():
            self._after_step(backend, job_id, state)

    def _after_failed_step(
        self, backend: Backend, job_ids: Sequence[str], behind: Sequence[str], error: Exception
    ) -> None:
        """A batch raised. Out of memory: its jobs are tried again in smaller batches. Else each of those that are
        ``behind``, having taken no step, is stepped alone."""
        if backend.is_out_of_memory(error):
            log.warning("a batch step ran out of memory", extra=fields(jobs=len(job_ids)))
            if not self._scheduler.out_of_memory(job_ids):
                self._fail(job_ids[0], "OUT_OF_MEMORY", "the device has too little memory for this story; ask for less")
            return
        log.error("a batch step failed; its jobs are stepped alone", extra=fields(jobs=len(job_ids), **failure(error)))
        for job_id in behind:
            with self._failing_alone(job_id):
                backend.step([self._jobs[job_id].encoded])

    def _report_batch(self, backend: Backend, stepped: Mapping[str, State], seconds: float) -> None:
        peak = backend.take_peak_bytes()
        self._scheduler.stepped(list(stepped), seconds=seconds, peak_bytes=peak)
        first = self._jobs[next(iter(stepped))].submit.job
        batch = messages.BatchStepped(
            steps={job_id: state.step_index for job_id, state in stepped.items() if state.error is None},
            seconds=seconds,
            rows=sum(self._jobs[job_id].rows_of(state.step_index) for job_id, state in stepped.items()),
            jobs=len(stepped),
            width=first.width,
            height=first.height,
            peak_bytes=peak,
            coefficients=self._cost.coefficients,
            largest_story=self._memory.largest_story(),
        )
        self._tell(batch)

    def _after_step(self, backend: Backend, job_id: str, state: State) -> None:
        if state.error is not None:
            self._fail(job_id, "STORY_DIVERGED", f"{state.error}; try another seed or a lower guidance scale")
            return
        job = self._jobs[job_id]
        if state.done:
            self._start_decoding(backend, job_id, job)
            return
        if job.pace is not None and job.pace.due(state.step_index, time.monotonic()):
            with self._failing_alone(job_id):
                self._tell(messages.Checkpoint(job_id, state.step_index, backend.save(state)))

    def _start_decoding(self, backend: Backend, job_id: str, job: _Job) -> None:
        job.marks[Status.DECODING] = time.monotonic()
        with self._failing_alone(job_id):
            job.latents = backend.final_latents(job.encoded)
            self._tell(messages.DecodingStarted(job_id))

    def _preview(self, job_id: str) -> None:
        job = self._jobs[job_id]
        backend = self._backends[job.submit.model]
        with self._failing_alone(job_id):
            pictures = backend.preview(job.encoded, range(len(job.submit.job.frames)))
            self._tell(messages.Preview(job_id, job.encoded.step_index, tuple(map(pixels, pictures))))
            self._scheduler.previewed(job_id)

    def _decode(self, job_id: str, frames: Sequence[int]) -> None:
        job = self._jobs[job_id]
        backend = self._backends[job.submit.model]
        with self._failing_alone(job_id):
            began = time.monotonic()
            pictures = zip(frames, backend.decode(job.encoded, frames), strict=True)
            done = [
                frame_done(backend, job.submit, job.encoded, frame, picture, job.latents[frame])
                for frame, picture in pictures
            ]
            # With what is looked at in pictures: that keeps others waiting, too.
            seconds = time.monotonic() - began
            for message in done:
                self._tell(message)
            if self._scheduler.decoded(job_id, frames, seconds=seconds):
                self._finish(job_id, job)

    def _finish(self, job_id: str, job: _Job) -> None:
        marks, now = job.marks, time.monotonic()
        self._drop(job_id, Status.FINISHED)
        timings = messages.JobFinished(
            job_id,
            encode_seconds=marks[Status.DENOISING] - marks[Status.ENCODING],
            denoise_seconds=marks[Status.DECODING] - marks[Status.DENOISING],
            decode_seconds=now - marks[Status.DECODING],
        )
        self._tell(timings)

    def _fail_expired(self) -> None:
        for job_id in self._scheduler.expired():
            self._fail(job_id, "DEADLINE_EXCEEDED", "the story's deadline passed before it was done")

    def _fail(self, job_id: str, reason: str, message: str) -> None:
        self._drop(job_id, Status.FAILED)
        self._tell(messages.JobFailed(job_id, reason, message))

    @contextmanager
    def _failing_alone(self, job_id: str) -> Iterator[None]:
        """Turns whatever the model raises into the failure of this one job."""
        try:
            yield
        except ServiceGoneError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not take other jobs with it.
            log.error("job failed", extra=fields(job_id=job_id, **failure(error)))
            if self._backends[self._jobs[job_id].submit.model].is_out_of_memory(error):
                self._fail(job_id, "OUT_OF_MEMORY", "the device has too little memory for this story; ask for less")
                return
            if isinstance(error, JobError):
                self._fail(job_id, "STORY_UNSUITABLE", str(error))
                return
            kind = type(error).__name__
            self._fail(job_id, "ENGINE_ERROR", f"the model raised {kind} for this story; see the server's log")

    def _drop(self, job_id: str, status: Status) -> None:
        del self._jobs[job_id]
        self._scheduler.remove(job_id, status)

    def _tell_positions(self) -> None:
        """Sends the positions that have changed."""
        positions = self._scheduler.queue_positions()
        moved = {job_id: place for job_id, place in positions.items() if self._positions.get(job_id) != place}
        self._positions = positions
        if moved:
            self._tell(messages.QueueMoved(moved))

    def _tell(self, message: messages.FromEngine) -> None:
        self._outgoing.append(message)

    def _flush(self) -> None:
        """Sends everything that has been told since the last time, in one piece; a beat when there is nothing."""
        now = time.monotonic()
        if not self._outgoing:
            if now - self._last_sent < _BEAT_SECONDS:
                return
            self._outgoing.append(messages.Beat())
        try:
            # What ``Connection.send`` does, without its support for sending things that only processes can share.
            self._connection.send_bytes(pickle.dumps(self._outgoing, pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise ServiceGoneError from error
        self._outgoing = []
        self._last_sent = now
