"""What the overhead measurement puts into the engine process: steps that cost nothing, and a timed scheduler."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from storyloom_server.scheduler import Scheduler, Status
from tests.server.null_backend import NullBackend, NullState

REPORT_VARIABLE = "STORYLOOM_BENCH_REPORT"
"""Environment variable with the file that ``TimedScheduler`` writes when its first story is finished."""

STEP_SECONDS = 0.001


class FreeRows(NullBackend):
    """A denoiser that computes nothing. Its step sleeps for a moment whatever is in it, so that batching pays."""

    def step(self, states: Sequence[NullState]) -> None:
        time.sleep(STEP_SECONDS)
        for state in states:
            state.step_index += 1


def _timed(name: str) -> Callable[..., Any]:
    method = getattr(Scheduler, name)

    @functools.wraps(method)
    def call(self: TimedScheduler, *args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.seconds += time.thread_time() - began

    return call


class TimedScheduler(Scheduler):
    """Measures the steps between the moment when all stories are encoded and the first one's last step."""

    next_work = _timed("next_work")
    expired = _timed("expired")
    wait_seconds = _timed("wait_seconds")
    _timed_stepped = _timed("stepped")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seconds = 0.0
        self._measured: list[int] = []
        self._measured_from: tuple[float, float, float] | None = None
        self._reported = False

    def stepped(self, story_ids: Sequence[str], seconds: float, peak_bytes: int | None = None) -> None:
        """Counts the batch; the measurement begins with the first one in which nobody is waiting to be encoded."""
        if self._measured_from is None and not any(
            self.status(story) is not Status.DENOISING for story in self._stories
        ):
            self._measured_from = (time.process_time(), time.monotonic(), self.seconds)
        elif self._measured_from is not None and not self._reported:
            self._measured.append(len(story_ids))
        self._timed_stepped(story_ids, seconds, peak_bytes)
        if self._measured and not self._reported and any(self.status(s) is not Status.DENOISING for s in story_ids):
            self._report()

    def _report(self) -> None:
        assert self._measured_from is not None
        self._reported = True
        cpu, wall, scheduler = self._measured_from
        count = len(self._measured)
        report = {
            "batches": count,
            "stories_per_batch": sum(self._measured) / count,
            "engine_cpu_ms": 1000 * (time.process_time() - cpu) / count,
            "wall_ms": 1000 * (time.monotonic() - wall) / count,
            "scheduler_cpu_ms": 1000 * (self.seconds - scheduler) / count,
        }
        Path(os.environ[REPORT_VARIABLE]).write_text(json.dumps(report))
