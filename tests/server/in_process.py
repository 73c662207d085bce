"""A real server on the test's own event loop, so that a test can look at its objects; the engine is a process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from storyloom_server.catalog import ModelCatalog
from storyloom_server.operations import Operations
from storyloom_server.options import ServerOptions
from storyloom_server.server import StoryServer, open_store
from tests.server.serving import NULL_BACKEND, START_SECONDS


@asynccontextmanager
async def serving_here(folder: Path, model: Path, **options: Any) -> AsyncIterator[str]:
    """The address of a server of ``model``, which ends as by SIGTERM."""
    ready_file = folder / "ready"
    chosen = ServerOptions(
        **{
            "model": [model],
            "port": 0,
            "state_folder": folder / "state",
            "ready_file": ready_file,
            "backend": NULL_BACKEND,
            **options,
        }
    )
    catalog = ModelCatalog.load(chosen.model, chosen.model_folder)
    operations = Operations(chosen, "test", catalog.names)
    running = asyncio.create_task(StoryServer(chosen, catalog, operations, open_store(chosen)).run())
    del catalog, operations
    try:
        async with asyncio.timeout(START_SECONDS):
            while not ready_file.exists():
                assert not running.done(), running
                await asyncio.sleep(0.02)
        yield ready_file.read_text().strip()
    finally:
        if not running.done():
            os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await running == 0
