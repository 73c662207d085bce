"""What the server costs beside the model: the engine's loop, the pipe, the service, and the lag of its event loop.

Three measurements, with a denoiser that does nothing. ``engine``: the real engine process over its real pipe, with so
many stories in flight; processor time and wall time of a batch step without the denoiser's, the part of the scheduler
and of pickling, and the service's end of the pipe; ``overhead_cpu_ms`` is both processes together.
``service``: a whole server whose steps take a fixed time; processor time of both processes for each batch step, with
nobody watching and with a stream for each story. ``lag``: how late the event loop is with many streams open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.server import machine
from benchmarks.server.measured import REPORT_VARIABLE
from benchmarks.server.scrape import Samples, Scrape, free_port, quantile_between
from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.execution import ExecutionOptions
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.prompts import ComposedPrompt
from storyloom_server import messages
from storyloom_server.engine.options import EngineOptions, ModelSpec
from storyloom_server.engine_link import EngineLink
from storyloom_server.scheduler import Limits
from tests.server.processes import processor_seconds
from tests.server.serving import ServerProcess, generate, serving, stories, story, wait_until

OUT = Path("benchmarks/results/server/overhead.json")
FRAMES = 2
ROWS = 2 * FRAMES
_START_SECONDS, _RUN_SECONDS = 120.0, 300.0
_LAG = "storyloom_event_loop_lag_seconds"
_STEPS = "storyloom_denoise_step_duration_seconds_count"


def job(steps: int) -> StoryJob:
    """Two frames with guidance: four rows."""
    frames = tuple(FrameJob(ComposedPrompt("a dog", {}), seed) for seed in range(FRAMES))
    return StoryJob(
        frames=frames, negative_prompt="", steps=steps, guidance_scale=4.0, solver="ddim", width=128, height=128,
        adapter="none",
    )  # fmt: skip


def engine(count: int, story_steps: int, max_rows: int) -> dict[str, float]:
    """Milliseconds of a batch step of the engine process with ``count`` stories in flight."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        os.environ[REPORT_VARIABLE] = f"{count}:{path}"
        service_seconds, heard = asyncio.run(_run_engine(count, story_steps, max_rows))
        report: dict[str, float] = json.loads(path.read_text())
    spoken = [batch for batch in heard if any(isinstance(message, messages.BatchStepped) for message in batch)]
    steps = [message for batch in spoken for message in batch if isinstance(message, messages.BatchStepped)]
    report["wall_ms"] -= 1000 * sum(message.seconds for message in steps) / len(steps)
    began = time.thread_time()
    pickled = [pickle.dumps(batch) for batch in spoken]
    after = time.thread_time()
    for data in pickled:
        pickle.loads(data)  # noqa: S301 - our own
    report["pickling_cpu_ms"] = 1000 * (after - began) / len(steps)
    report["unpickling_cpu_ms"] = 1000 * (time.thread_time() - after) / len(steps)
    report["service_cpu_ms"] = 1000 * service_seconds
    report["message_bytes"] = sum(map(len, pickled)) / len(steps)
    report["loop_cpu_ms"] = report["engine_cpu_ms"] - report["scheduler_cpu_ms"] - report["pickling_cpu_ms"]
    report["overhead_cpu_ms"] = report["engine_cpu_ms"] + report["service_cpu_ms"]
    return report


async def _run_engine(count: int, steps: int, max_rows: int) -> tuple[float, list[Sequence[messages.FromEngine]]]:
    """This process's processor seconds for each batch step, and all that the engine said.

    They are those of the second half of the steps before a first story has taken its last: without the coming of jobs
    and of pictures, as in the engine.
    """
    heard: list[Sequence[messages.FromEngine]] = []
    ready, finished = asyncio.Event(), asyncio.Event()
    left = count
    used: list[float] = []
    decoding: set[str] = set()

    def hear(batch: Sequence[messages.FromEngine]) -> None:
        nonlocal left
        heard.append(batch)
        for message in batch:
            if isinstance(message, messages.Ready):
                ready.set()
            left -= isinstance(message, messages.JobFinished)
            decoding.update([message.job_id] if isinstance(message, messages.DecodingStarted) else [])
            if isinstance(message, messages.BatchStepped) and not decoding:
                used.append(time.process_time())
        if not left:
            finished.set()

    options = EngineOptions(
        models=(ModelSpec("null", Path("null"), job(1)),),
        backend="benchmarks.server.measured:FreeRows",
        scheduler="benchmarks.server.measured:TimedScheduler",
        device="cpu",
        execution=ExecutionOptions(),
        limits=Limits(max_rows=max_rows, max_active_stories=count, max_active_rows=max(max_rows, ROWS * count)),
        threads=1,
        log_level="warning",
        log_format="text",
        log_prompts=False,
    )
    link = EngineLink(options, hear)
    link.start()
    async with asyncio.timeout(_START_SECONDS):
        await ready.wait()
    heard.clear()
    for index in range(count):
        link.send(messages.Submit(f"job-{index}", "null", job(steps)))
    async with asyncio.timeout(_RUN_SECONDS):
        await finished.wait()
    await link.close(politely=True)
    half = len(used) // 2
    return (used[-1] - used[half]) / (len(used) - half - 1), heard


@contextmanager
def _server(model: Path, step_seconds: float, *arguments: str) -> Iterator[tuple[ServerProcess, Scrape]]:
    port = free_port()
    slow = {"STORYLOOM_TEST_STEP_SECONDS": str(step_seconds)}
    options = (
        "--log-level",
        "info",
        "--metrics-port",
        str(port),
        "--max-active",
        "64",
        "--max-queue",
        "1000",
        "--drain-seconds",
        "0",
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), model, *options, *arguments, environment=slow) as server,
    ):
        yield server, Scrape(port)
        server.terminate()


def service(model: Path, count: int, step_seconds: float, seconds: float, *, watched: bool) -> dict[str, float]:
    """Processor milliseconds of a batch step in both processes of a server with ``count`` stories in flight."""
    with _server(model, step_seconds) as (server, scrape), grpc.insecure_channel(server.address) as channel:
        calls = _start_stories(channel, count, watched=watched)
        time.sleep(2.0)
        before, service_before = scrape.read(), processor_seconds(server.process.pid)
        engine_before = processor_seconds(server.engine_pid)
        time.sleep(seconds)
        batches = (after := scrape.read()).total(_STEPS) - before.total(_STEPS)
        found = {
            "batches": batches,
            "stories_per_batch": (after.total("storyloom_steps_total") - before.total("storyloom_steps_total"))
            / batches,
            "service_cpu_ms": 1000 * (processor_seconds(server.process.pid) - service_before) / batches,
            "engine_cpu_ms": 1000 * (processor_seconds(server.engine_pid) - engine_before) / batches,
        }
        for call in calls:
            call.cancel()
    return found


def _start_stories(channel: grpc.Channel, count: int, *, watched: bool) -> list[Any]:
    """Starts long stories; with a thread that reads each of them, or with nobody who does."""
    asked = story("a dog", "a cat", steps=100)
    calls = []
    for _ in range(count):
        if watched:
            calls.append(generate(channel, asked, timeout=600))
            threading.Thread(target=_read, args=(calls[-1],), daemon=True).start()
        else:
            stories(channel).CreateStory(pb.CreateStoryRequest(story=asked), timeout=60)
    return calls


def _read(call: Any) -> None:
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        return


def _open_stories(samples: Samples) -> float:
    return samples.total("storyloom_stories_in_flight") + samples.total("storyloom_stories_queued")


def _accepted(samples: Samples) -> float:
    return _open_stories(samples) + samples.total("storyloom_stories_total")


def lag(model: Path, streams: int, step_seconds: float, seconds: float) -> dict[str, float]:
    """How late the event loop comes to its timers, idle and with ``streams`` stories being watched. Milliseconds."""
    with _server(model, step_seconds) as (server, scrape), grpc.insecure_channel(server.address) as channel:
        time.sleep(1.0)
        idle_before = scrape.read()
        time.sleep(seconds / 2)
        idle_after = scrape.read()
        calls = _start_stories(channel, streams, watched=True)
        wait_until(lambda: _accepted(scrape.read()) >= streams, _START_SECONDS)
        time.sleep(2.0)
        before, cpu = scrape.read(), processor_seconds(server.process.pid)
        time.sleep(seconds)
        after = scrape.read()
        busy = (processor_seconds(server.process.pid) - cpu) / seconds
        found = {
            "streams": float(streams),
            "open_stories": _open_stories(after),
            "service_cpu_share": busy,
            "idle_p50": 1000 * quantile_between(idle_before, idle_after, _LAG, 0.5),
            "idle_p99": 1000 * quantile_between(idle_before, idle_after, _LAG, 0.99),
            "p50": 1000 * quantile_between(before, after, _LAG, 0.5),
            "p99": 1000 * quantile_between(before, after, _LAG, 0.99),
        }
        for call in calls:
            call.cancel()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"), help="its weights are not used")
    parser.add_argument("--stories", type=int, default=64, help="in flight")
    parser.add_argument("--streams", type=int, default=200, help="open while the event loop is watched")
    parser.add_argument("--step-seconds", type=float, default=0.05, help="of a batch step in the server")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python -m benchmarks.server.overhead " + " ".join(sys.argv[1:]),
        "hardware": machine.facts(),
        "engine": [
            {"max_rows": rows} | engine(options.stories, 400, rows)
            for rows in (48, ROWS * options.stories)
            for _ in range(options.repeats)
        ],
        "service": [
            {"watched": watched} | service(options.model, options.stories, options.step_seconds, 8.0, watched=watched)
            for watched in (False, True)
        ],
        "lag": lag(options.model, options.streams, options.step_seconds, 10.0),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    for name in ("engine", "service"):
        for figures in result[name]:
            print(name, {key: round(value, 3) for key, value in figures.items()})
    print("lag", {key: round(value, 3) for key, value in result["lag"].items()})


if __name__ == "__main__":
    main()
