"""The entry point of the engine process."""

from __future__ import annotations

import logging
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from storyloom_model.jobs import StoryJob
from storyloom_server import logs, messages
from storyloom_server.engine.backend import Backend, load_backend, load_class
from storyloom_server.engine.calibration import warm_up
from storyloom_server.engine.loop import Engine, ServiceGoneError
from storyloom_server.engine.options import EngineOptions
from storyloom_server.engine.references import fingerprints
from storyloom_server.scheduler import CostModel, MemoryModel

log = logging.getLogger("storyloom.engine")

# How often a thread of torch on the CPU looks whether the others are done before it sleeps. The default is 15 times
# that; where there are more busy threads than cores, it so keeps a core from the very thread that it waits for.
# Measured on two cores: a step takes as long as before with the cores to itself, and two thirds where it shares them.
_SPIN_COUNT = "20000"


def run_engine(connection: Connection[Any, Any], options: EngineOptions) -> None:
    """Loads the models, then serves until it is told to leave.

    Signals are the service's business: it drains first and then says ``Shutdown``. When the service process is gone,
    the closed pipe ends this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.set_up(options.log_level, options.log_format, prompts=options.log_prompts)
    started = time.monotonic()
    cost = cost_model(options)
    try:
        _prepare_torch(options)
        backends = {spec.name: _load(options, spec.folder, spec.warm_up, cost) for spec in options.models}
        # All models are on one device.
        memory = MemoryModel(next(iter(backends.values())).memory_bytes())
        scheduler = load_class(options.scheduler)(options.limits, cost, memory, time.monotonic)
    except Exception as error:
        log.exception("the engine cannot start")
        connection.send([messages.StartFailed(f"{type(error).__name__}: {error}")])
        return
    try:
        engine = Engine(
            backends,
            lambda message, loaded: _load(options, message.folder, message.warm_up, cost, loaded),
            connection,
            scheduler,
            cost,
            memory,
        )
        engine.run(messages.Ready(time.monotonic() - started, cost.coefficients, fingerprints(backends)))
    except ServiceGoneError:
        log.warning("the service process is gone; the engine leaves")


def cost_model(options: EngineOptions) -> CostModel:
    """A cost model that knows what models pad to: nothing on the CPU, where each story has a UNet call of its own."""
    return CostModel(options.execution.buckets if options.device.startswith("cuda") else ())


def _prepare_torch(options: EngineOptions) -> None:
    """Sets what holds for the whole process. A backend without torch does not pay for its import."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if options.device.startswith("cuda"):
        import torch

        # Graphs are captured on the current device.
        torch.cuda.set_device(options.device)


def _load(
    options: EngineOptions, folder: Path, warm_up_job: StoryJob, cost: CostModel, loaded: Backend | None = None
) -> Backend:
    backend = loaded or load_backend(options.backend, folder, options.device, options.execution)
    warm_up(backend, warm_up_job, cost, options.limits.max_rows)
    return backend
