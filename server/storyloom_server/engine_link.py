"""One engine process, seen from the service: starts it, moves messages, notices its end.

Everything but two pump threads runs on the event loop. The threads only move messages between the pipe and the loop, so
that neither a busy engine nor a full pipe ever blocks it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from storyloom_server import messages
from storyloom_server.engine.options import EngineOptions
from storyloom_server.engine.process import run_engine
from storyloom_server.logs import fields

log = logging.getLogger("storyloom.engine_link")

_EXIT_SECONDS = 15.0


class EngineLink:
    """Owns one engine process from its start to its end. Create and use it on one event loop.

    Args:
        options: what the process starts with.
        on_messages: called on the loop with everything the engine says, in order.
    """

    def __init__(self, options: EngineOptions, on_messages: Callable[[Sequence[messages.FromEngine]], None]) -> None:
        self._on_messages = on_messages
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._outbox: queue.SimpleQueue[messages.ToEngine | None] = queue.SimpleQueue()
        context = multiprocessing.get_context("spawn")
        self._connection, self._engine_end = context.Pipe(duplex=True)
        self._process = context.Process(
            target=run_engine, args=(self._engine_end, options), name="storyloom-engine", daemon=True
        )
        self._threads: list[threading.Thread] = []
        self.last_heard = time.monotonic()

    def start(self) -> None:
        """Starts the process. It says ``Ready`` or ``StartFailed``, unless it dies first.

        Raises:
            OSError, RuntimeError: the system gives no process or no thread. ``close`` frees what there is.
        """
        self._process.start()
        # Without this the pipe would stay open here after the engine's death, and nobody would notice it.
        self._engine_end.close()
        for name, pump in (("engine-reader", self._read), ("engine-writer", self._write)):
            thread = threading.Thread(target=pump, args=(self._connection,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        log.info("engine process started", extra=fields(pid=self._process.pid))

    def send(self, message: messages.ToEngine) -> None:
        """Queues a message for the engine. One that is gone never gets it."""
        self._outbox.put(message)

    async def wait_ended(self) -> None:
        """Waits until the process is gone."""
        await self._ended.wait()

    def kill(self) -> None:
        """Ends the process at once, whatever it does."""
        self._process.kill()

    async def close(self, *, politely: bool) -> None:
        """Ends the process and frees what it held. No process is left behind."""
        if self._process.pid is None:
            self._engine_end.close()
            self._connection.close()
            return
        if politely:
            self.send(messages.Shutdown())
        self._outbox.put(None)
        if politely:
            await asyncio.to_thread(self._process.join, _EXIT_SECONDS)
        if self._process.is_alive():
            self._process.kill()
        await asyncio.to_thread(self._process.join)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _EXIT_SECONDS)
        self._connection.close()
        log.info("engine process ended", extra=fields(exit_code=self._process.exitcode))

    def _read(self, connection: Connection[Any, Any]) -> None:
        """Pump thread: engine to event loop, until the pipe closes."""
        try:
            while True:
                self._loop.call_soon_threadsafe(self._hear, connection.recv())
        except (EOFError, OSError):
            self._loop.call_soon_threadsafe(self._ended.set)

    def _write(self, connection: Connection[Any, Any]) -> None:
        """Pump thread: outbox to engine, until None comes."""
        while (message := self._outbox.get()) is not None:
            try:
                connection.send(message)
            except OSError:
                return  # The reader thread sees the closed pipe too, and reports it.

    def _hear(self, heard: Sequence[messages.FromEngine]) -> None:
        self.last_heard = time.monotonic()
        self._on_messages(heard)
