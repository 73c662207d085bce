"""The life of the server process: open the store, listen, warm up, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from storyloom.v1 import (
    character_service_pb2,
    character_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    story_service_pb2,
    story_service_pb2_grpc,
)
from storyloom_model.execution import Dtype, ExecutionOptions
from storyloom_server import messages
from storyloom_server.catalog import ModelCatalog
from storyloom_server.characters import Characters
from storyloom_server.decoding import RequestDecoder
from storyloom_server.desk import Desk
from storyloom_server.discovery import Discoveries
from storyloom_server.engine.options import EngineOptions, ModelSpec
from storyloom_server.logs import fields
from storyloom_server.operations import Operations
from storyloom_server.options import ServerOptions
from storyloom_server.orders import OrderTaker
from storyloom_server.pictures import PictureLimits
from storyloom_server.poses import Poses
from storyloom_server.references import References
from storyloom_server.scheduler import Admission, Limits
from storyloom_server.services.character_service import CharacterService
from storyloom_server.services.model_service import ModelService
from storyloom_server.services.story_service import StoryService
from storyloom_server.setup_error import SetupError
from storyloom_server.store import RetentionPolicy, Store, StoreOptions, Sweeper
from storyloom_server.store.errors import StoreError
from storyloom_server.supervisor import EngineStatus, RestartPolicy, Supervisor
from storyloom_server.warm_up import warm_up_job
from storyloom_server.workshop import Workshop

log = logging.getLogger("storyloom.server")

_READY_SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (story_service_pb2, "StoryService"),
        (model_service_pb2, "ModelService"),
        (character_service_pb2, "CharacterService"),
    )
)
_MIB = 1024 * 1024
_ENCODER_THREADS = 2
_LEASE_SECONDS = 30.0
# For calls that were just told their end to get it through.
_STOP_GRACE_SECONDS = 2.0
_CHANNEL_OPTIONS = (
    # A second server on a taken port must fail, not share it.
    ("grpc.so_reuseport", 0),
    # Finds clients that vanished without closing their connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class AddressError(SetupError):
    """The server cannot listen where it was told to."""


class StoryServer:
    """A gRPC server, its store and its engine. Make and run it on one event loop.

    Health: "" is SERVING from the start to the end; the services only while the engine takes stories, from the end of
    the warm-up to SIGTERM.

    Args:
        options: everything that can be set.
        catalog: the served models.
        operations: everything around the stories; ``run`` starts and stops it.
        store: open; ``run`` closes it.
    """

    def __init__(self, options: ServerOptions, catalog: ModelCatalog, operations: Operations, store: Store) -> None:
        self._options = options
        self._operations = operations
        self._store = store
        self._encoders = ThreadPoolExecutor(_ENCODER_THREADS, thread_name_prefix="png-encoder")
        self._engine = Supervisor(
            _engine_options(options, catalog),
            RestartPolicy(options.hang_seconds, options.max_restarts),
            on_status=self._on_engine_status,
            on_batch=self._on_batch,
        )
        metrics, gate, safety = operations.metrics, operations.gate, operations.safety
        workshop = Workshop(
            store=store,
            engine=self._engine,
            encoders=self._encoders,
            metrics=metrics,
            safety=safety,
            checkpoint_interval=options.checkpoint_steps,
            checkpoint_seconds=options.checkpoint_seconds,
        )
        limits = PictureLimits(options.max_request_mib, options.max_image_megapixels)
        references = References(store, self._engine, metrics, limits, safety)
        self._desk = Desk(
            workshop, catalog, gate, operations.tracing, _admission(options), references, _keep_seconds(options)
        )
        metrics.follow(in_flight=lambda: self._desk.working, queued=lambda: self._desk.waiting)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # The stubs lack it.
        self._serving_changed = asyncio.Event()
        self._draining = False
        self._server = grpc.aio.server(
            interceptors=[*operations.interceptors, RequestDecoder()],
            options=[*operations.channel_options, *_CHANNEL_OPTIONS],
        )
        characters = Characters(store, catalog, references)
        orders = OrderTaker(catalog, characters, references, Poses(catalog, limits, safety), safety)
        stories = StoryService(orders, self._desk, metrics)
        models = ModelService(gate, catalog, self._engine, self._desk, round(options.max_request_mib * _MIB))
        story_service_pb2_grpc.add_StoryServiceServicer_to_server(stories, self._server)
        self._discoveries = Discoveries(catalog, orders, self._desk, references, characters)
        kept = CharacterService(characters, self._discoveries)
        character_service_pb2_grpc.add_CharacterServiceServicer_to_server(kept, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*_READY_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def run(self) -> int:
        """Serves until SIGTERM, SIGINT or the engine is given up.

        Returns:
            The exit code: 0 after a signal, 1 when the engine could not start or died too often.

        Raises:
            AddressError: the address cannot be bound.
        """
        stop, hurry = _stop_signals()
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._operations.stop)
            closing.push_async_callback(self._store.close)
            closing.callback(self._encoders.shutdown, wait=False, cancel_futures=True)
            closing.push_async_callback(self._engine.close)
            closing.push_async_callback(self._server.stop, _STOP_GRACE_SECONDS)
            closing.push_async_callback(self._desk.leave)
            closing.push_async_callback(self._discoveries.leave)
            await self._set_health()
            address = self._listen()
            self._operations.start(ready=lambda: self._takes_stories)
            self._start_background(closing)
            await self._server.start()
            self._engine.start()
            await _first(self._engine.wait_for(EngineStatus.READY), stop.wait())
            if self._engine.status is EngineStatus.READY and not stop.is_set():
                await self._set_health()
                self._announce(address, closing)
                await _first(self._engine.wait_for(EngineStatus.FAILED), stop.wait())
            await self._drain(hurry)
            return 1 if self._engine.status is EngineStatus.FAILED else 0

    def _listen(self) -> str:
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        try:
            port = self._operations.add_port(self._server, f"{host}:{self._options.port}")
        except RuntimeError as error:
            raise AddressError(
                f"cannot listen on {host}:{self._options.port}; choose another --host or --port"
            ) from error
        log.info("listening; loading models", extra=fields(address=f"{host}:{port}"))
        return f"{host}:{port}"

    def _start_background(self, closing: AsyncExitStack) -> None:
        for work in (self._desk.keep_house(_LEASE_SECONDS), self._sweep(), self._follow_health()):
            task = asyncio.create_task(work)
            closing.callback(task.cancel)

    def _announce(self, address: str, closing: AsyncExitStack) -> None:
        file = self._options.ready_file
        if file is not None:
            _write_whole(file, f"{address}\n")
            closing.callback(file.unlink, missing_ok=True)
        print(f"storyloom: ready on {address}", flush=True)

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Lets open stories finish, for a while; the others are left to a later server."""
        self._draining = True
        self._desk.drain()
        await self._set_health()
        log.info("draining", extra=fields(seconds=self._options.drain_seconds, open=self._desk.open_stories))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.drain_seconds):
                await _first(self._desk.wait_idle(), self._engine.wait_for(EngineStatus.FAILED), hurry.wait())

    async def _sweep(self) -> None:
        """Deletes what need not be kept any longer, every few minutes."""
        options = self._options
        policy = RetentionPolicy(
            keep_seconds=_keep_seconds(options),
            tenant_bytes=int(options.tenant_quota_mib * _MIB) or None,
        )
        sweeper = Sweeper(self._store, policy)
        while True:
            try:
                report = await sweeper.sweep()
                if report.stories or report.orphans:
                    log.info("store swept", extra=fields(stories=report.stories, orphans=report.orphans))
            except StoreError as error:
                log.warning("the store could not be swept", extra=fields(why=error))
            await asyncio.sleep(policy.sweep_seconds)

    def _on_engine_status(self, status: EngineStatus) -> None:
        self._operations.metrics.engine_is_up(status is EngineStatus.READY)
        if status is EngineStatus.RESTARTING:
            self._operations.metrics.engine_restarted()
        self._serving_changed.set()

    def _on_batch(self, batch: messages.BatchStepped) -> None:
        self._operations.metrics.batch_stepped(
            batch.seconds,
            rows=batch.rows,
            max_rows=self._options.max_rows,
            stories=batch.jobs,
            size=f"{batch.width}x{batch.height}",
        )
        if batch.peak_bytes is not None:
            self._operations.metrics.memory_peaked(batch.peak_bytes)

    @property
    def _takes_stories(self) -> bool:
        return self._engine.status is EngineStatus.READY and not self._draining

    async def _follow_health(self) -> None:
        while True:
            await self._serving_changed.wait()
            self._serving_changed.clear()
            await self._set_health()

    async def _set_health(self) -> None:
        statuses = health_pb2.HealthCheckResponse
        for service in _READY_SERVICES:
            await self._health.set(service, statuses.SERVING if self._takes_stories else statuses.NOT_SERVING)


def _engine_options(options: ServerOptions, catalog: ModelCatalog) -> EngineOptions:
    return EngineOptions(
        models=tuple(ModelSpec(model.name, model.folder, warm_up_job(model)) for model in catalog.models),
        backend=options.backend,
        scheduler=options.scheduler,
        limits=Limits(
            max_rows=options.max_rows,
            max_active_stories=options.max_active,
            max_active_rows=options.max_active * options.max_rows,
        ),
        device=options.device,
        execution=_execution(options),
        threads=options.threads,
        log_level=options.log_level,
        log_format=options.log_format,
        log_prompts=options.log_prompts,
    )


def _execution(options: ServerOptions) -> ExecutionOptions:
    """How the models are run, as far as the device can."""
    on_gpu = options.device.startswith("cuda")
    automatic: Dtype = "float16" if on_gpu else "float32"
    return ExecutionOptions(
        dtype=automatic if options.dtype == "auto" else options.dtype,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs and on_gpu,
        channels_last=on_gpu,
    )


def _keep_seconds(options: ServerOptions) -> float:
    """How long ended stories are kept."""
    return options.retention_hours * 3600 if options.retention_hours else math.inf


def _admission(options: ServerOptions) -> Admission:
    return Admission(
        max_open=options.max_active + options.max_queue,
        max_open_per_tenant=options.max_active + options.max_queue,
        max_rows=options.max_rows,
    )


def open_store(options: ServerOptions) -> Store:
    """Opens the store that the options name. Blocks.

    Raises:
        StoreSetupError, StoreUnavailableError: it cannot be used.
    """
    return Store.open(
        StoreOptions(
            folder=options.state_folder,
            database=options.database_url,
            blobs=options.pictures_url,
            lease_seconds=_LEASE_SECONDS,
        )
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
