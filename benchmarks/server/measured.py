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
"""Environment variable for ``TimedScheduler``: the number of stories, a colon, and the file that it writes."""

STEP_SECONDS = 0.001


class FreeRows(NullBackend):
    """A denoiser that computes nothing. Its step sleeps for a moment whatever is in it, so that batching pays.

    ``seconds`` is the processor time that its steps have taken all the same: it stands for a model, and does not count.
    """

    seconds = 0.0

    def step(self, states: Sequence[NullState]) -> None:
        began = time.thread_time()
        time.sleep(STEP_SECONDS)
        for state in states:
            state.step_index += 1
        FreeRows.seconds += time.thread_time() - began


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
    """Measures the steps between the moment when all stories are here and the end of the first one's last step."""

    next_work = _timed("next_work")
    expired = _timed("expired")
    wait_seconds = _timed("wait_seconds")
    _timed_stepped = _timed("stepped")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seconds = 0.0
        count, _, path = os.environ[REPORT_VARIABLE].partition(":")
        self._wanted, self._path = int(count), Path(path)
        self._batch_sizes: list[int] = []
        self._began: tuple[float, float, float, float] | None = None

    def stepped(self, story_ids: Sequence[str], seconds: float, peak_bytes: int | None = None) -> None:
        """Counts the batch."""
        if self._began is not None:
            self._batch_sizes.append(len(story_ids))
        elif len(self._stories) == self._wanted:
            self._began = (time.process_time(), time.monotonic(), self.seconds, FreeRows.seconds)
        self._timed_stepped(story_ids, seconds, peak_bytes)
        if self._batch_sizes and any(self.status(story_id) is Status.DECODING for story_id in story_ids):
            self._report()

    def _report(self) -> None:
        if self._began is None or self._path.exists():
            return
        cpu, wall, scheduler, denoiser = self._began
        denoiser = FreeRows.seconds - denoiser
        count = len(self._batch_sizes)
        report = {
            "batches": count,
            "stories_per_batch": sum(self._batch_sizes) / count,
            "engine_cpu_ms": 1000 * (time.process_time() - cpu - denoiser) / count,
            "wall_ms": 1000 * (time.monotonic() - wall) / count,
            "denoiser_cpu_ms": 1000 * denoiser / count,
            "scheduler_cpu_ms": 1000 * (self.seconds - scheduler) / count,
        }
        self._path.write_text(json.dumps(report))
