"""Keeps an engine process alive: starts it, watches it, starts it again with back-off, and routes its messages to runs.

A run is told when the engine is lost and decides for itself what to send to the next one (``story_run``).
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias

from storyloom_server import messages
from storyloom_server.engine.options import EngineOptions, ModelSpec
from storyloom_server.engine_link import EngineLink
from storyloom_server.logs import fields
from storyloom_server.reference_calls import EngineGoneError, ReferenceCalls
from storyloom_server.scheduler import CostModel

log = logging.getLogger("storyloom.supervisor")

Sink: TypeAlias = Callable[[messages.ToRun], None]

_FIRST_BACK_OFF_SECONDS = 0.25
_LONGEST_BACK_OFF_SECONDS = 30.0
# An engine that has lived so long was sound: the next restart counts as the first.
_SOUND_SECONDS = 60.0
_WATCH_SECONDS = 1.0
_POSITIONS_AT_ONCE = 16
_POSITIONS_PAUSE_SECONDS = 0.02


class EngineStatus(enum.Enum):
    """Where the engine is in its life. ``STARTING`` is the first start; ``FAILED`` and ``CLOSED`` are final."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """``hang_seconds`` of silence end an engine process; more than ``max_restarts`` in a row end the server."""

    hang_seconds: float = 300.0
    max_restarts: int = 8


class ModelError(Exception):
    """A model cannot be loaded or warmed up. The message says why."""


@dataclass(slots=True)
class _Watched:
    """A job in the engine: who reads it, and whether it has left the engine's queue."""

    sink: Sink
    left_queue: bool = False


class Supervisor:
    """Owns the engine process of one device. Create and use it on one event loop.

    Args:
        options: what every engine process starts with.
        policy: when to end one, and when to give up.
        on_status: called after each change of ``status``.
        on_batch: called after each batch step, for metrics.
    """

    def __init__(
        self,
        options: EngineOptions,
        policy: RestartPolicy,
        *,
        on_status: Callable[[EngineStatus], None] = lambda status: None,
        on_batch: Callable[[messages.BatchStepped], None] = lambda batch: None,
    ) -> None:
        self._options = options
        self._policy = policy
        self._on_status = on_status
        self._on_batch = on_batch
        self._status = EngineStatus.STARTING
        self._changed = asyncio.Event()
        self._link: EngineLink | None = None
        self._jobs: dict[str, _Watched] = {}
        self._moved: dict[str, int] = {}  # Queue positions that are still to be told.
        self._loading: dict[str, asyncio.Future[float]] = {}
        self._references = ReferenceCalls()
        self._encoders: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready_since = 0.0
        self.restarts = 0
        self.coefficients = CostModel().coefficients
        self.largest_story: float | None = None

    @property
    def status(self) -> EngineStatus:
        """Where the engine is in its life."""
        return self._status

    def start(self) -> None:
        """Starts the first engine process; ``wait_for`` tells when it can take jobs."""
        self._task = asyncio.create_task(self._keep_alive(), name="engine-supervisor")

    async def wait_for(self, *wanted: EngineStatus) -> EngineStatus:
        """Waits until the status is one of ``wanted``, or final; returns it."""
        while self._status not in (*wanted, EngineStatus.FAILED, EngineStatus.CLOSED):
            await self._changed.wait()
        return self._status

    def submit(self, submit: messages.Submit, sink: Sink) -> None:
        """Sends a job to the engine; what happens to it goes to ``sink``, on the loop, until ``release``.

        Raises:
            RuntimeError: the engine is not ready.
            ValueError: the job is in the engine already.
        """
        if self._link is None or self._status is not EngineStatus.READY:
            raise RuntimeError(f"the engine is {self._status.value}; submit jobs only when it is ready")
        if submit.job_id in self._jobs:
            raise ValueError(f"job {submit.job_id} is in the engine already; release it before it is submitted again")
        self._jobs[submit.job_id] = _Watched(sink)
        self._link.send(submit)

    def release(self, job_id: str) -> None:
        """The job is no longer wanted. Frees its place in the batch if it is still running."""
        if self._jobs.pop(job_id, None) is not None and self._link is not None:
            self._link.send(messages.Cancel(job_id))

    @property
    def encoders(self) -> Mapping[str, str]:
        """Fingerprints of the encoders of those models that take references."""
        return self._encoders

    async def encode_references(self, ask: messages.EncodeReferences) -> messages.ReferencesEncoded:
        """Has references encoded.

        Raises:
            EngineGoneError: there is no engine, or it died before it answered.
        """
        if self._link is None or self._status is not EngineStatus.READY:
            raise EngineGoneError(suspect=False)
        link = self._link
        link.send(ask)
        try:
            return await self._references.wait(ask.job_id)
        except asyncio.CancelledError:
            link.send(messages.Cancel(ask.job_id))
            raise

    async def load_model(self, spec: ModelSpec) -> float:
        """Loads a model, or warms it up again, and returns the seconds it took.

        Raises:
            ModelError: it cannot be loaded, or the engine was lost meanwhile.
        """
        if self._link is None or self._status is not EngineStatus.READY:
            raise ModelError(f"the engine is {self._status.value}; try again later")
        if spec.name in self._loading:
            return await asyncio.shield(self._loading[spec.name])
        answer = self._loading[spec.name] = asyncio.get_running_loop().create_future()
        self._link.send(messages.LoadModel(spec.name, spec.folder, spec.warm_up))
        seconds: float = await asyncio.shield(answer)
        others = tuple(model for model in self._options.models if model.name != spec.name)
        self._options = replace(self._options, models=(*others, spec))
        return seconds

    def unload_model(self, name: str) -> None:
        """Forgets a model, in this engine process and in later ones."""
        remaining = tuple(model for model in self._options.models if model.name != name)
        self._options = replace(self._options, models=remaining)
        self._encoders.pop(name, None)
        if self._link is not None:
            self._link.send(messages.UnloadModel(name))

    async def close(self) -> None:
        """Ends the engine process: politely if it is ready, else by force. No process is left behind."""
        politely = self._status is EngineStatus.READY
        self._set_status(EngineStatus.CLOSED)
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._references.lose()
        self._lose_models("the engine was closed while it loaded the model")
        if self._link is not None:
            await self._link.close(politely=politely)
            self._link = None

    async def _keep_alive(self) -> None:
        """One engine process after the other."""
        while True:
            await self._live_once()
            first_start = self._status is EngineStatus.STARTING
            lived = time.monotonic() - self._ready_since if self._status is EngineStatus.READY else 0.0
            self.restarts = 1 if lived > _SOUND_SECONDS else self.restarts + 1
            given_up = first_start or self.restarts > self._policy.max_restarts
            self._set_status(EngineStatus.FAILED if given_up else EngineStatus.RESTARTING)
            self._lose_jobs()
            if given_up:
                log.error("the engine is given up", extra=fields(restarts=self.restarts - 1))
                return
            back_off = min(_FIRST_BACK_OFF_SECONDS * 2 ** (self.restarts - 1), _LONGEST_BACK_OFF_SECONDS)
            log.warning("the engine starts again", extra=fields(restarts=self.restarts, seconds=back_off))
            await asyncio.sleep(back_off)

    async def _live_once(self) -> None:
        """From the start of a process to its end, by itself or because it hung. One that cannot start ends at once."""
        link: EngineLink | None = None
        try:
            link = self._link = EngineLink(self._options, self._deliver)
            link.start()
            watch = asyncio.create_task(self._watch(link))
            try:
                await link.wait_ended()
            finally:
                watch.cancel()
            log.error("the engine process is gone", extra=fields(open_jobs=len(self._jobs)))
        except Exception:
            log.exception("an engine process cannot be started")
        finally:
            if link is not None and self._status is not EngineStatus.CLOSED:
                self._link = None
                await link.close(politely=False)

    async def _watch(self, link: EngineLink) -> None:
        """Kills an engine that has said nothing for too long. To load models it is given all the time it wants."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            silent = time.monotonic() - link.last_heard
            busy = self._status is not EngineStatus.READY or self._loading
            if not busy and silent > self._policy.hang_seconds:
                log.error("the engine hangs; it is killed", extra=fields(silent_seconds=round(silent, 1)))
                link.kill()

    def _deliver(self, heard: Sequence[messages.FromEngine]) -> None:
        for message in heard:
            match message:
                case messages.Ready():
                    log.info("engine ready", extra=fields(seconds=round(message.seconds, 3)))
                    self._ready_since = time.monotonic()
                    self.coefficients = message.coefficients
                    self._encoders = dict(message.encoders)
                    self._set_status(EngineStatus.READY)
                case messages.StartFailed():
                    log.error("the engine cannot start: %s", message.message)
                case messages.ModelLoaded():
                    self._settle_model(message)
                case messages.QueueMoved():
                    spreading = bool(self._moved)
                    self._moved.update(message.positions)
                    if not spreading:
                        self._tell_positions()
                case messages.BatchStepped():
                    self.coefficients, self.largest_story = message.coefficients, message.largest_story
                    self._on_batch(message)
                    for stepped in message.by_job():
                        self._hand_over(stepped.job_id, stepped)
                case messages.ReferencesBegun() | messages.ReferencesEncoded():
                    self._references.hear(message)
                case messages.Beat():
                    pass
                case _:
                    if isinstance(message, messages.EncodingStarted) and message.job_id in self._jobs:
                        self._jobs[message.job_id].left_queue = True
                        self._moved.pop(message.job_id, None)
                    self._hand_over(message.job_id, message)

    def _tell_positions(self) -> None:
        """Hands over some of the positions that have moved, and the others later. When a story ends all those behind
        it move, and to tell all of their readers at once would hold up the event loop.
        """
        for job_id in list(itertools.islice(self._moved, _POSITIONS_AT_ONCE)):
            self._hand_over(job_id, messages.QueuePosition(job_id, self._moved.pop(job_id)))
        if self._moved:
            asyncio.get_running_loop().call_later(_POSITIONS_PAUSE_SECONDS, self._tell_positions)

    def _hand_over(self, job_id: str, message: messages.ToRun) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return  # It was released, and the engine did not know yet.
        if isinstance(message, messages.JobFinished | messages.JobFailed):
            del self._jobs[job_id]
        job.sink(message)

    def _settle_model(self, message: messages.ModelLoaded) -> None:
        answer = self._loading.pop(message.name, None)
        if answer is None or answer.done():
            return
        if message.error:
            answer.set_exception(ModelError(message.error))
        else:
            if message.encoders:
                self._encoders[message.name] = message.encoders
            answer.set_result(message.seconds)

    def _lose_jobs(self) -> None:
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.sink(messages.EngineLost(suspect=job.left_queue))
        self._references.lose()
        self._lose_models("the engine process died while it loaded the model")

    def _lose_models(self, why: str) -> None:
        loading, self._loading = self._loading, {}
        for answer in loading.values():
            answer.set_exception(ModelError(why))

    def _set_status(self, status: EngineStatus) -> None:
        if self._status is EngineStatus.CLOSED:
            return
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_status(status)
