"""The service's side of the engine process: starts it, sends stories, hands each story's messages to its reader.

Everything but two pump threads runs on the event loop. The threads only move messages between the pipe and the loop, so
that neither a busy engine nor a full pipe ever blocks it. There is no supervisor: when the engine process dies, every
open story is told so, and the server leaves with a non-zero exit code for whoever started it to restart it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import multiprocessing
import queue
import threading
from multiprocessing.connection import Connection
from typing import Any

from storyloom_server import messages
from storyloom_server.engine import EngineOptions, run_engine
from storyloom_server.logs import fields

log = logging.getLogger("storyloom.engine_client")

# Undelivered messages of one story above which previews and progress are dropped: a slow reader loses only these.
_DROP_ABOVE = 32
_EXIT_SECONDS = 5.0


class EngineStatus(enum.Enum):
    """Where the engine process is in its life."""

    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    CLOSED = "closed"


class QueueFullError(Exception):
    """As many stories wait as may wait."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} stories are waiting already")
        self.waiting = waiting


class OpenStory:
    """A submitted story, seen by its one reader.

    ``queue_position``: stories in front of it when it came. ``ended``: the engine has nothing more to do for it.
    """

    def __init__(self, queue_position: int) -> None:
        self.queue_position = queue_position
        self.ended = False
        self._told_position = queue_position
        self._messages: asyncio.Queue[messages.ToReader] = asyncio.Queue()

    async def next(self) -> messages.ToReader:
        """Waits for the story's next message."""
        return await self._messages.get()

    def put(self, message: messages.ToReader) -> None:
        """Adds a message, unless it can be done without and too many wait already."""
        if isinstance(message, messages.QueuePosition):
            if message.position == self._told_position:
                return
            self._told_position = message.position
        if isinstance(message, messages.StoryFinished | messages.StoryFailed):
            self.ended = True
        expendable = isinstance(message, messages.Preview | messages.Stepped | messages.QueuePosition)
        if expendable and self._messages.qsize() >= _DROP_ABOVE:
            return
        self._messages.put_nowait(message)


class EngineClient:
    """Owns the engine process. Create and use it on one event loop.

    Args:
        options: what the engine process starts with.
        max_queue: stories that may wait to start; 0 takes a story only when none is waiting.
    """

    def __init__(self, options: EngineOptions, max_queue: int) -> None:
        self._max_queue = max_queue
        self._status = EngineStatus.STARTING
        self._settled = asyncio.Event()
        self._ended = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stories: dict[str, OpenStory] = {}
        self._waiting: dict[str, None] = {}
        self._outbox: queue.SimpleQueue[messages.ToEngine | None] = queue.SimpleQueue()
        context = multiprocessing.get_context("spawn")
        self._connection, self._engine_end = context.Pipe(duplex=True)
        self._process = context.Process(
            target=run_engine, args=(self._engine_end, options), name="storyloom-engine", daemon=True
        )
        self._threads: list[threading.Thread] = []

    @property
    def status(self) -> EngineStatus:
        """Where the engine process is in its life."""
        return self._status

    @property
    def pid(self) -> int | None:
        """Id of the engine process, once started."""
        return self._process.pid

    def start(self) -> None:
        """Starts the process; ``wait_settled`` tells when it can take stories."""
        loop = asyncio.get_running_loop()
        self._process.start()
        # Without this the pipe would stay open here after the engine's death, and nobody would notice it.
        self._engine_end.close()
        self._threads = [
            threading.Thread(target=self._read, args=(self._connection, loop), name="engine-reader", daemon=True),
            threading.Thread(target=self._write, args=(self._connection,), name="engine-writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        log.info("engine process started", extra=fields(pid=self._process.pid))

    async def wait_settled(self) -> None:
        """Waits until the engine can take stories, or failed to start: see ``status``."""
        await self._settled.wait()

    async def wait_ended(self) -> None:
        """Waits until the engine process is gone."""
        await self._ended.wait()

    async def wait_idle(self) -> None:
        """Waits until no story is open: every one was read to its end, or given up."""
        await self._idle.wait()

    def submit(self, submit: messages.Submit) -> OpenStory:
        """Sends a story to the engine.

        Raises:
            QueueFullError: ``max_queue`` stories are waiting.
            RuntimeError: the engine is not ready; look at ``status`` first.
        """
        if self._status is not EngineStatus.READY:
            raise RuntimeError(f"the engine is {self._status.value}; submit stories only when it is ready")
        waiting = len(self._waiting)
        if waiting > 0 and waiting >= self._max_queue:
            raise QueueFullError(waiting)
        story = OpenStory(queue_position=waiting)
        self._stories[submit.story_id] = story
        self._idle.clear()
        self._waiting[submit.story_id] = None
        self._outbox.put(submit)
        return story

    def release(self, story_id: str) -> None:
        """The story's reader is done with it. Frees its place in the batch if it is still running."""
        self._waiting.pop(story_id, None)
        story = self._stories.pop(story_id, None)
        if story is not None and not story.ended:
            self._outbox.put(messages.Cancel(story_id))
        if not self._stories:
            self._idle.set()

    def drop_all(self) -> None:
        """Tells every reader that its story will not be finished."""
        self._tell_all(messages.Dropped())

    async def close(self) -> None:
        """Ends the engine process: politely, then by force. No process is left behind."""
        was_ready = self._status is EngineStatus.READY
        self._status = EngineStatus.CLOSED
        if self._process.pid is None:
            return
        self._outbox.put(messages.Shutdown())
        self._outbox.put(None)
        if was_ready:
            await asyncio.to_thread(self._process.join, _EXIT_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _EXIT_SECONDS)
        self._connection.close()
        log.info("engine process ended", extra=fields(exit_code=self._process.exitcode))

    def _read(self, connection: Connection[Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        """Pump thread: engine to event loop, until the pipe closes."""
        try:
            while True:
                loop.call_soon_threadsafe(self._deliver, connection.recv())
        except (EOFError, OSError):
            loop.call_soon_threadsafe(self._on_end)

    def _write(self, connection: Connection[Any, Any]) -> None:
        """Pump thread: outbox to engine, until None comes."""
        while (message := self._outbox.get()) is not None:
            try:
                connection.send(message)
            except OSError:
                return  # The reader thread sees the closed pipe too, and reports it.

    def _deliver(self, message: messages.FromEngine) -> None:
        match message:
            case messages.Ready():
                log.info("engine ready", extra=fields(seconds=round(message.seconds, 3)))
                if self._status is EngineStatus.STARTING:
                    self._status = EngineStatus.READY
                self._settled.set()
            case messages.StartFailed():
                log.error("the engine cannot start: %s", message.message)
            case messages.QueueMoved():
                for story_id, position in message.positions.items():
                    self._hand_over(story_id, messages.QueuePosition(story_id, position))
            case _:
                self._waiting.pop(message.story_id, None)
                self._hand_over(message.story_id, message)

    def _hand_over(self, story_id: str, message: messages.ToReader) -> None:
        story = self._stories.get(story_id)
        if story is not None:  # Otherwise it was released, and the engine did not know yet.
            story.put(message)

    def _on_end(self) -> None:
        if self._status is not EngineStatus.CLOSED:
            log.error("the engine process is gone", extra=fields(open_stories=len(self._stories)))
            self._status = EngineStatus.LOST
        self._tell_all(messages.EngineLost())
        self._settled.set()
        self._ended.set()

    def _tell_all(self, message: messages.EngineLost | messages.Dropped) -> None:
        self._waiting.clear()
        for story in self._stories.values():
            story.put(message)
