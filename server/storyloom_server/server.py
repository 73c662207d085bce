"""The life of the server process: listen, warm up, serve, drain, stop."""

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from storyloom.v1 import model_service_pb2, model_service_pb2_grpc, story_service_pb2, story_service_pb2_grpc
from storyloom_server.catalog import ModelCatalog
from storyloom_server.engine import EngineOptions, ModelSpec
from storyloom_server.engine_client import EngineClient, EngineStatus
from storyloom_server.logs import fields
from storyloom_server.options import ServerOptions
from storyloom_server.service import ModelService, StoryService
from storyloom_server.warm_up import warm_up_job

log = logging.getLogger("storyloom.server")

_READY_SERVICES = (
    story_service_pb2.DESCRIPTOR.services_by_name["StoryService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
_MAX_REQUEST_BYTES = 4 * 1024 * 1024
_ENCODER_THREADS = 2
# For calls that were just told their end to get it through.
_STOP_GRACE_SECONDS = 2.0
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
    # A second server on a taken port must fail, not share it.
    ("grpc.so_reuseport", 0),
    # Finds clients that vanished without closing their connection; their stories are then cancelled.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class AddressError(Exception):
    """The server cannot listen where it was told to."""


class StoryServer:
    """A gRPC server and its engine process. Make and run it on one event loop.

    Health: "" is SERVING from the start to the end; the two services only from the end of the warm-up to SIGTERM, or to
    the death of the engine.
    """

    def __init__(self, options: ServerOptions, catalog: ModelCatalog) -> None:
        self._options = options
        self._encoders = ThreadPoolExecutor(_ENCODER_THREADS, thread_name_prefix="png-encoder")
        self._engine = EngineClient(_engine_options(options, catalog), options.max_queue)
        self._service = StoryService(catalog, self._engine, self._encoders)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # The stubs lack it.
        self._server = grpc.aio.server(options=_CHANNEL_OPTIONS)
        story_service_pb2_grpc.add_StoryServiceServicer_to_server(self._service, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(catalog), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*_READY_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def run(self) -> int:
        """Serves until SIGTERM, SIGINT or the death of the engine.

        Returns:
            The exit code: 0 after a signal, 1 when the engine died or could not start.

        Raises:
            AddressError: the address cannot be bound.
        """
        stop, hurry = _stop_signals()
        await self._set_serving(False)
        address = self._listen()
        try:
            await self._server.start()
            self._engine.start()
            await _first(self._engine.wait_settled(), stop.wait())
            if self._engine.status is EngineStatus.READY and not stop.is_set():
                await self._set_serving(True)
                self._announce(address)
                await _first(self._engine.wait_ended(), stop.wait())
            await self._set_serving(False)
            await self._drain(hurry)
            return self._exit_code()
        finally:
            await self._close()

    def _listen(self) -> str:
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        try:
            port = self._server.add_insecure_port(f"{host}:{self._options.port}")
        except RuntimeError as error:
            raise AddressError(
                f"cannot listen on {host}:{self._options.port}; choose another --host or --port"
            ) from error
        log.info("listening; loading models", extra=fields(address=f"{host}:{port}"))
        return f"{host}:{port}"

    def _announce(self, address: str) -> None:
        if self._options.ready_file is not None:
            _write_whole(self._options.ready_file, f"{address}\n")
        print(f"storyloom: ready on {address}", flush=True)

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Lets open stories finish, for a while; then tells the others that they will not be."""
        self._service.drain()
        log.info("draining", extra=fields(seconds=self._options.drain_seconds))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.drain_seconds):
                await _first(self._engine.wait_idle(), self._engine.wait_ended(), hurry.wait())
        self._engine.drop_all()

    def _exit_code(self) -> int:
        return 1 if self._engine.status is EngineStatus.LOST else 0

    async def _close(self) -> None:
        await self._server.stop(_STOP_GRACE_SECONDS)
        await self._engine.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)
        if self._options.ready_file is not None:
            self._options.ready_file.unlink(missing_ok=True)

    async def _set_serving(self, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        for service in _READY_SERVICES:
            await self._health.set(service, statuses.SERVING if serving else statuses.NOT_SERVING)


def _engine_options(options: ServerOptions, catalog: ModelCatalog) -> EngineOptions:
    return EngineOptions(
        models=tuple(ModelSpec(model.name, model.folder, warm_up_job(model)) for model in catalog.models),
        backend=options.backend,
        device=options.device,
        max_rows=options.max_rows,
        threads=options.threads,
        log_level=options.log_level,
        log_format=options.log_format,
    )


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events set by the first SIGTERM or SIGINT (stop) and by the second (hurry)."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, hurry


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Returns when the first of the waits does, and cancels the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that readers see either not at all or complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
