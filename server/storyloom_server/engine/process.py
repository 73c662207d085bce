"""The entry point of the engine process."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from storyloom_model.jobs import StoryJob
from storyloom_server import logs, messages
from storyloom_server.engine.backend import Backend, State, load_backend, load_class
from storyloom_server.engine.loop import Engine, ServiceGoneError
from storyloom_server.engine.options import EngineOptions
from storyloom_server.scheduler import CostModel, MemoryModel

log = logging.getLogger("storyloom.engine")


def run_engine(connection: Connection[Any, Any], options: EngineOptions) -> None:
    """Loads the models, then serves until it is told to leave.

    Signals are the service's business: it drains first and then says ``Shutdown``. When the service process is gone,
    the closed pipe ends this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.set_up(options.log_level, options.log_format)
    started = time.monotonic()
    try:
        _prepare_torch(options)
        backends = {spec.name: _load(options, spec.folder, spec.warm_up) for spec in options.models}
        cost = CostModel()
        memory = _memory_model(backends)
        scheduler = load_class(options.scheduler)(options.limits, cost, memory, time.monotonic)
    except Exception as error:
        log.exception("the engine cannot start")
        connection.send([messages.StartFailed(f"{type(error).__name__}: {error}")])
        return
    try:
        engine = Engine(
            backends,
            lambda message: _load(options, message.folder, message.warm_up),
            connection,
            scheduler,
            cost,
            memory,
        )
        engine.run(messages.Ready(time.monotonic() - started))
    except ServiceGoneError:
        log.warning("the service process is gone; the engine leaves")


def _memory_model(backends: Mapping[str, Backend]) -> MemoryModel:
    """All models are on one device."""
    return MemoryModel(next(iter(backends.values())).memory_bytes())


def _prepare_torch(options: EngineOptions) -> None:
    """Sets what holds for the whole process. A backend without torch does not pay for its import."""
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if options.device.startswith("cuda"):
        import torch

        # Graphs are captured on the current device.
        torch.cuda.set_device(options.device)


def _load(options: EngineOptions, folder: Path, warm_up: StoryJob) -> Backend:
    """Loads a model and takes a small story all the way through it, so that the first real one is not slow."""
    backend = load_backend(options.backend, folder, options.device, options.execution)
    state: State = backend.encode(warm_up)
    while not state.done:
        backend.step([state])
        if state.error is not None:
            raise RuntimeError(f"the model in {folder} failed its warm-up story: {state.error}")
        backend.preview(state, [0])
    backend.decode(state, [0])
    return backend
