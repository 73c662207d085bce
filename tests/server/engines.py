"""Jobs and options for engines without a model, and what the tests of the engine and its supervisor read them with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.prompts import ComposedPrompt
from storyloom_server import messages
from storyloom_server.engine.options import EngineOptions, ModelSpec
from storyloom_server.options import DEFAULT_SCHEDULER
from storyloom_server.scheduler import Limits
from storyloom_server.supervisor import EngineStatus, RestartPolicy, Supervisor
from tests.server.serving import NULL_BACKEND, START_SECONDS

ENDLESS = 10_000_000
_ENDS = (messages.JobFinished, messages.JobFailed, messages.EngineLost)


def job(text: str = "a cat", *, frames: int = 2, steps: int = 3, **fields: Any) -> StoryJob:
    """A job of four rows for two frames, since it is guided."""
    return StoryJob(
        frames=tuple(FrameJob(ComposedPrompt(text), seed=1000 + index) for index in range(frames)),
        **{
            "negative_prompt": "",
            "steps": steps,
            "guidance_scale": 5.0,
            "solver": "ddim",
            "width": 16,
            "height": 16,
            **fields,
        },
    )


def submit(job_id: str, asked: StoryJob | None = None, *, model: str = "null", **fields: Any) -> messages.Submit:
    return messages.Submit(job_id, model, asked or job(), **fields)


def spec(name: str = "null", folder: str = "null") -> ModelSpec:
    return ModelSpec(name, Path(folder), job())


def engine_options(*models: ModelSpec, max_rows: int = 16, max_active_stories: int = 8) -> EngineOptions:
    return EngineOptions(
        models=models or (spec(),),
        backend=NULL_BACKEND,
        scheduler=DEFAULT_SCHEDULER,
        device="cpu",
        execution=ExecutionOptions(),
        limits=Limits(max_rows=max_rows, max_active_stories=max_active_stories),
        threads=None,
        log_level="info",
        log_format="text",
        log_prompts=False,
    )


@asynccontextmanager
async def supervised(
    options: EngineOptions | None = None, policy: RestartPolicy | None = None, **callbacks: Any
) -> AsyncIterator[Supervisor]:
    """A supervisor whose engine is ready, closed afterwards."""
    supervisor = Supervisor(options or engine_options(), policy or RestartPolicy(), **callbacks)
    supervisor.start()
    try:
        async with asyncio.timeout(START_SECONDS):
            assert await supervisor.wait_for(EngineStatus.READY) is EngineStatus.READY
        yield supervisor
    finally:
        await supervisor.close()


class Heard:
    """A sink: everything that an engine said of one job."""

    def __init__(self) -> None:
        self.messages: list[messages.ToRun] = []
        self._came = asyncio.Event()

    def __call__(self, message: messages.ToRun) -> None:
        self.messages.append(message)
        self._came.set()

    async def until(self, *wanted: type[Any], seconds: float = 60.0) -> Any:
        """Waits for the first message of a wanted type, and returns it."""
        async with asyncio.timeout(seconds):
            while True:
                found = next((message for message in self.messages if isinstance(message, wanted)), None)
                if found is not None:
                    return found
                self._came.clear()
                await self._came.wait()

    async def end(self) -> Any:
        """Waits for the job's end, and returns how it ended."""
        return await self.until(*_ENDS)


def kinds(heard: Iterable[object]) -> list[str]:
    """The names of the messages' types."""
    return [type(message).__name__ for message in heard]
