"""The engine process: one loop that receives, encodes, steps and decodes.

It is single-threaded and owns every model and every story's tensors. Between two steps it encodes at most one story and
decodes a frame or so, so that running stories are never stalled for long; a cancelled story leaves at the next step.
A story that raises or goes non-finite is failed alone.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyloom_model.jobs import StoryJob
from storyloom_server import logs, messages
from storyloom_server.backend import Backend, State, load_backend
from storyloom_server.logs import fields
from storyloom_server.scheduler import Scheduler, Status

log = logging.getLogger("storyloom.engine")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve: its name, its package folder, and the small story that warms it up."""

    name: str
    folder: Path
    warm_up: StoryJob


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Everything the engine process needs to know at its start. ``threads`` None: as many as there are cores."""

    models: tuple[ModelSpec, ...]
    backend: str
    device: str
    max_rows: int
    threads: int | None
    log_level: str
    log_format: str


@dataclass(slots=True)
class _OpenStory:
    """A story of the engine. ``marks`` are monotonic seconds at which its stages began."""

    submit: messages.Submit
    marks: dict[Status, float] = field(default_factory=dict)


class ServiceGoneError(Exception):
    """The other end of the pipe is closed: nobody is left to work for."""


class Engine:
    """Runs the stories that come in through ``connection`` until it is told to leave or the other side is gone."""

    def __init__(self, backends: dict[str, Backend], connection: Connection[Any, Any], max_rows: int) -> None:
        self._backends = backends
        self._connection = connection
        self._scheduler = Scheduler(max_rows)
        self._stories: dict[str, _OpenStory] = {}
        self._states: dict[str, State] = {}
        self._leaving = False

    def run(self, ready: messages.Ready) -> None:
        """Says ``ready``, then loops. Returns after ``Shutdown``.

        Raises:
            ServiceGoneError: the service process is gone.
        """
        self._send(ready)
        while True:
            self._receive()
            if self._leaving:
                return
            self._encode_next()
            self._step_next()
            self._decode_next()

    def _receive(self) -> None:
        """Takes every message that is there; waits for one when there is nothing else to do."""
        while (message := self._next_message()) is not None:
            match message:
                case messages.Submit():
                    self._submit(message)
                case messages.Cancel():
                    self._cancel(message.story_id)
                case messages.Shutdown():
                    self._leaving = True

    def _next_message(self) -> messages.ToEngine | None:
        wait_seconds = None if self._scheduler.idle and not self._leaving else 0
        try:
            return self._connection.recv() if self._connection.poll(wait_seconds) else None
        except (EOFError, OSError) as error:
            raise ServiceGoneError from error

    def _submit(self, submit: messages.Submit) -> None:
        self._stories[submit.story_id] = _OpenStory(submit)
        self._scheduler.submit(submit.story_id, rows=submit.job.rows, frames=len(submit.job.frames))

    def _cancel(self, story_id: str) -> None:
        if story_id not in self._stories:
            return
        self._drop(story_id)
        rows_before = self._scheduler.rows_in_use
        self._scheduler.remove(story_id, Status.CANCELLED)
        rows_now = self._scheduler.rows_in_use
        log.info(
            "story cancelled",
            extra=fields(
                story_id=story_id, rows_freed=rows_before - rows_now, rows_in_use=rows_now, open=len(self._stories)
            ),
        )
        self._tell_positions()

    def _encode_next(self) -> None:
        story_id = self._scheduler.admit()
        if story_id is None:
            return
        story = self._stories[story_id]
        story.marks[Status.ENCODING] = time.monotonic()
        self._send(messages.EncodingStarted(story_id))
        self._tell_positions()
        backend = self._backends[story.submit.model]
        with self._failing_alone(story_id):
            state = self._states[story_id] = backend.encode(story.submit.job)
            self._scheduler.encoded(story_id, key=(story.submit.model, state.key), rows=state.rows)
            story.marks[Status.DENOISING] = time.monotonic()
            self._send(messages.Stepped(story_id, 0, state.steps))

    def _step_next(self) -> None:
        batch = self._scheduler.next_batch()
        if not batch:
            return
        backend = self._backends[self._stories[batch[0]].submit.model]
        steps_before = {story_id: self._states[story_id].step_index for story_id in batch}
        try:
            backend.step([self._states[story_id] for story_id in batch])
        except Exception:
            log.exception("a batch step failed; its stories are stepped alone", extra=fields(stories=len(batch)))
            for story_id in batch:
                if self._states[story_id].step_index == steps_before[story_id]:
                    with self._failing_alone(story_id):
                        backend.step([self._states[story_id]])
        for story_id in batch:
            if story_id in self._stories:
                self._after_step(backend, story_id)

    def _after_step(self, backend: Backend, story_id: str) -> None:
        story, state = self._stories[story_id], self._states[story_id]
        if state.error is not None:
            self._fail(story_id, "STORY_DIVERGED", f"{state.error}; try another seed or a lower guidance scale")
            return
        self._send(messages.Stepped(story_id, state.step_index, state.steps))
        if state.done:
            self._scheduler.denoised(story_id)
            story.marks[Status.DECODING] = time.monotonic()
            self._send(messages.DecodingStarted(story_id))
            return
        interval = story.submit.preview_interval
        if interval and state.step_index % interval == 0:
            with self._failing_alone(story_id):
                pictures = backend.preview(state, range(len(story.submit.job.frames)))
                self._send(messages.Preview(story_id, state.step_index, tuple(map(_pixels, pictures))))

    def _decode_next(self) -> None:
        for story_id, frame in self._scheduler.next_frames():
            if story_id not in self._stories:
                continue  # An earlier frame of the same round failed the story.
            story = self._stories[story_id]
            with self._failing_alone(story_id):
                picture = self._backends[story.submit.model].decode(self._states[story_id], [frame])[0]
                self._send(messages.FrameDone(story_id, frame, _pixels(picture)))
                if self._scheduler.frame_decoded(story_id):
                    self._finish(story_id)

    def _finish(self, story_id: str) -> None:
        marks, now = self._drop(story_id).marks, time.monotonic()
        timings = messages.StoryFinished(
            story_id,
            encode_seconds=marks[Status.DENOISING] - marks[Status.ENCODING],
            denoise_seconds=marks[Status.DECODING] - marks[Status.DENOISING],
            decode_seconds=now - marks[Status.DECODING],
        )
        self._send(timings)

    def _fail(self, story_id: str, reason: str, message: str) -> None:
        self._drop(story_id)
        self._scheduler.remove(story_id, Status.FAILED)
        self._send(messages.StoryFailed(story_id, reason, message))

    @contextmanager
    def _failing_alone(self, story_id: str) -> Iterator[None]:
        """Turns whatever the model raises into the failure of this one story."""
        try:
            yield
        except ServiceGoneError:
            raise
        except Exception as error:
            log.exception("story failed", extra=fields(story_id=story_id))
            kind = type(error).__name__
            self._fail(story_id, "ENGINE_ERROR", f"the model raised {kind} for this story; see the server's log")

    def _tell_positions(self) -> None:
        positions = self._scheduler.queue_positions()
        if positions:
            self._send(messages.QueueMoved(positions))

    def _drop(self, story_id: str) -> _OpenStory:
        self._states.pop(story_id, None)
        return self._stories.pop(story_id)

    def _send(self, message: messages.FromEngine) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise ServiceGoneError from error


def _pixels(picture: NDArray[np.uint8]) -> messages.Pixels:
    """A uint8 [height, width, 3] array as a message."""
    height, width, _ = picture.shape
    return messages.Pixels(width=width, height=height, rgb=np.ascontiguousarray(picture).tobytes())


def _load(options: EngineOptions) -> dict[str, Backend]:
    """Loads every model and takes a small story all the way through it, so that the first real one is not slow."""
    if options.threads is not None:
        import torch  # Not at the top: a backend without torch must not pay for it.

        torch.set_num_threads(options.threads)
    backends = {}
    for spec in options.models:
        backend = load_backend(options.backend, spec.folder, options.device)
        state: State = backend.encode(spec.warm_up)
        while not state.done:
            backend.step([state])
            if state.error is not None:
                raise RuntimeError(f"model {spec.name} failed its warm-up story: {state.error}")
            backend.preview(state, [0])
        backend.decode(state, [0])
        backends[spec.name] = backend
    return backends


def run_engine(connection: Connection[Any, Any], options: EngineOptions) -> None:
    """Entry point of the engine process.

    Signals are the service's business: it drains first and then says ``Shutdown``. When the service process is gone,
    the closed pipe ends this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.set_up(options.log_level, options.log_format)
    started = time.monotonic()
    try:
        backends = _load(options)
    except Exception as error:
        log.exception("the engine cannot start")
        connection.send(messages.StartFailed(f"{type(error).__name__}: {error}"))
        return
    try:
        Engine(backends, connection, options.max_rows).run(messages.Ready(time.monotonic() - started))
    except ServiceGoneError:
        log.warning("the service process is gone; the engine leaves")
