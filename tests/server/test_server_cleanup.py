"""However a story ends, nothing of it is left: not in the server, not in the engine, not in their memory."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import re
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from storyloom.v1 import story_service_pb2 as pb
from tests.server.counting_backend import COUNTS_FILE, ENGINE_TYPES, live
from tests.server.in_process import serving_here
from tests.server.serving import create, generate, record, serving, stories, story, until_step, wait_until

BACKEND = "tests.server.counting_backend:CountingBackend"
STORY_TYPES = ("StoryRun", "AcceptedStory", "EventLog", "LoggedEvent", "_Watched")
"""One or more of each for an open story, and none for an ended one."""
PARTS = ("StoryServer", "Desk", "Supervisor", "EngineLink", "GroupWriter", "StateFolder")
REPEATED, AT_ONCE = 20, 5
SETTLE_SECONDS = 120.0
LONG, CRAWLED = 100, 20
CHANCE = random.Random(1)  # noqa: S311
POOLS = {"store-reader": 4, "store-blobs": 8, "png-encoder": 2, "asyncio": min(32, (os.cpu_count() or 1) + 4)}
"""Pools of threads grow with need, up to this size."""


def threads() -> dict[str, int]:
    """Threads by their names without numbers."""
    return dict(Counter(re.sub(r"[-_]\d+.*$", "", thread.name) for thread in threading.enumerate()))


def held() -> dict[str, Any]:
    """What this process holds of stories."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    fixed = {name: count for name, count in threads().items() if name not in POOLS}
    return {**live(STORY_TYPES), "tasks": len(tasks), "threads": fixed}


class Client:
    """What the matrix does: a call of each kind, brought to each end."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = stories(channel)  # type: ignore[arg-type]

    def request(self, prompt: str, steps: int, kind: Any = pb.GenerateStoryRequest, **fields: Any) -> Any:
        preview = 1 if "crawl" in prompt else None
        return kind(story=story(prompt, "a hat", steps=steps, preview_interval=preview), **fields)

    async def ended(self, story_id: str) -> pb.StoryRecord:
        while True:
            found = (await self.stub.GetStory(pb.GetStoryRequest(story_id=story_id))).story
            if found.state not in (pb.STORY_STATE_QUEUED, pb.STORY_STATE_RUNNING):
                return found
            await asyncio.sleep(0.02)

    async def create(self, prompt: str, steps: int = 3, **scheduling: Any) -> str:
        request = self.request(prompt, steps, pb.CreateStoryRequest, scheduling=scheduling or None)
        return str((await self.stub.CreateStory(request)).story.story_id)

    async def unary_ok(self) -> str:
        return pb.StoryState.Name((await self.ended(await self.create("a dog"))).state)

    async def unary_cancel(self) -> str:
        story_id = await self.create("a dog", LONG)
        await asyncio.sleep(CHANCE.random() / 5)
        cancelled = await self.stub.CancelStory(pb.CancelStoryRequest(story_id=story_id))
        assert (await self.ended(cancelled.story.story_id)).state == pb.STORY_STATE_CANCELLED
        return "STORY_STATE_CANCELLED"

    async def unary_deadline(self) -> str:
        story_id = await self.create("crawl", CRAWLED, deadline={"nanos": 700_000_000})
        return str((await self.ended(story_id)).failure.reason)

    async def unary_error(self) -> str:
        return str((await self.ended(await self.create("raise-step"))).failure.reason)

    async def read(self, prompt: str, steps: int = 3, seconds: float | None = None, leave: bool = False) -> str:
        request = self.request(prompt, steps, on_disconnect=pb.DISCONNECT_POLICY_CANCEL)
        call = self.stub.GenerateStory(request, timeout=seconds)
        left_at = CHANCE.randint(1, 12)
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for event in call:
                if leave and event.sequence >= left_at:
                    call.cancel()
        return str((await call.code()).name)

    async def watch(self, story_id: str) -> str:
        call = self.stub.WatchStory(pb.WatchStoryRequest(story_id=story_id))
        with suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        return str((await call.code()).name)

    async def stream_ok(self) -> str:
        return await self.read("a dog")

    async def stream_cancel(self) -> str:
        return await self.read("a dog", LONG, leave=True)

    async def stream_deadline(self) -> str:
        return await self.read("crawl", CRAWLED, seconds=0.7)

    async def stream_error(self) -> str:
        return await self.read("diverge")


OUTCOMES = {
    "unary_ok": "STORY_STATE_FINISHED",
    "unary_cancel": "STORY_STATE_CANCELLED",
    "unary_deadline": "DEADLINE_EXCEEDED",
    "unary_error": "ENGINE_ERROR",
    "stream_ok": "OK",
    "stream_cancel": "CANCELLED",
    "stream_deadline": "DEADLINE_EXCEEDED",
    "stream_error": "INTERNAL",
}


async def settled(before: dict[str, Any]) -> None:
    """Waits until this process holds what it held before."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (now := held()) != before:
        assert time.monotonic() < deadline, f"{now}\n{before}"
        await asyncio.sleep(0.05)
    for pool, size in POOLS.items():
        assert threads().get(pool, 0) <= size


async def held_by_engine(client: Client, counts: Path) -> dict[str, int]:
    """What the engine process holds, as a last story finds it."""
    await client.ended(await client.create("count"))
    found: dict[str, int] = json.loads(counts.read_text())  # noqa: ASYNC240
    return found


async def repeated(work: Callable[[], Awaitable[str]]) -> set[str]:
    """What came of it, a few at a time."""
    found: set[str] = set()
    for _ in range(REPEATED // AT_ONCE):
        found.update(await asyncio.gather(*(work() for _ in range(AT_ONCE))))
    return found


def test_nothing_is_left_of_a_story_however_it_ended(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = tmp_path / "counts"
    monkeypatch.setenv(COUNTS_FILE, str(counts))
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", "0.005")

    async def run() -> None:
        async with (
            serving_here(tmp_path, tiny_package, backend=BACKEND, log_level="warning") as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            client = Client(channel)
            await repeated(client.unary_ok)
            await asyncio.sleep(0.2)
            before = held()
            assert {name: before[name] for name in STORY_TYPES} == dict.fromkeys(STORY_TYPES, 0)
            for case, outcome in OUTCOMES.items():
                assert await repeated(getattr(client, case)) == {outcome}, case
                await settled(before)
                # The story that counts is the only job.
                assert await held_by_engine(client, counts) == dict(zip(ENGINE_TYPES, (0, 1, 1), strict=True)), case

    asyncio.run(run())


def test_nothing_is_left_of_a_server_that_stopped_amid_its_stories(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", "0.05")
    lives = 4

    async def life(folder: Path) -> None:
        async with serving_here(folder, tiny_package, log_level="warning", drain_seconds=0.1) as address:
            channel = grpc.aio.insecure_channel(address)
            client = Client(channel)
            calls = [asyncio.create_task(client.read("a dog", LONG)) for _ in range(REPEATED // lives)]
            made = [await client.create("a dog", LONG) for _ in range(REPEATED // lives)]
            calls += [asyncio.create_task(client.watch(story_id)) for story_id in made]
            await asyncio.sleep(0.3)
        assert set(await asyncio.gather(*calls)) == {"UNAVAILABLE"}
        await channel.close()

    async def run() -> None:
        before = threads()
        for number in range(lives):
            (tmp_path / str(number)).mkdir()
            await life(tmp_path / str(number))
            deadline = time.monotonic() + SETTLE_SECONDS
            while now := +Counter(live((*STORY_TYPES, *PARTS))):
                assert time.monotonic() < deadline, str(now)
                await asyncio.sleep(0.05)
            names = {name for name in threads() if name.startswith(("store", "png", "engine"))}
            assert names <= before.keys()
            assert multiprocessing.active_children() == []

    asyncio.run(run())


def status(pid: int) -> tuple[float, int, int]:
    """Resident MiB, threads and open files of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    kib, count = (int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("VmRSS", "Threads"))  # type: ignore[index]
    return kib / 1024, count, len(os.listdir(f"/proc/{pid}/fd"))


def gauge(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        found = re.search(rf"^storyloom_{name} ([\d.]+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def leave_at_random(channel: grpc.Channel, number: int) -> None:
    """A quick story, whose client leaves at any moment, or stays, or never looks, or cancels it."""
    chance = random.Random(number)  # noqa: S311
    policy = chance.choice([pb.DISCONNECT_POLICY_CANCEL, pb.DISCONNECT_POLICY_FINISH])
    asked = story("a dog", "a cat", steps=chance.randint(1, 8), preview_interval=1)
    with suppress(grpc.RpcError):
        match chance.randrange(4):
            case 0:
                list(generate(channel, asked, on_disconnect=policy))
            case 1:
                call = generate(channel, asked, on_disconnect=policy)
                for _ in range(chance.randint(0, 10)):
                    next(call, None)
                call.cancel()
            case 2:
                list(generate(channel, asked, timeout=chance.uniform(0.001, 0.1), on_disconnect=policy))
            case _:
                story_id = create(channel, asked)
                if chance.random() < 0.5:
                    stories(channel).CancelStory(pb.CancelStoryRequest(story_id=story_id), timeout=30)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_memory_stays_flat_while_clients_come_and_go(tiny_package: Path, tmp_path: Path, free_port: int) -> None:
    warm_up, counted, allowed_mib = 200, 300, 8.0
    with (
        serving(tmp_path, tiny_package, "--metrics-port", str(free_port), "--log-level", "info") as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(8) as clients,
    ):
        pids = (server.process.pid, server.engine_pid)

        def after(numbers: range) -> list[tuple[float, int, int]]:
            list(clients.map(lambda number: leave_at_random(channel, number), numbers))
            for name in ("stories_in_flight", "stories_queued"):
                wait_until(lambda name=name: gauge(free_port, name) == 0, 60)  # type: ignore[misc]
            return [status(pid) for pid in pids]

        first = after(range(warm_up))
        second = after(range(warm_up, warm_up + counted))
        for (mib, threads_before, files_before), (mib_now, threads_now, files_now) in zip(first, second, strict=True):
            assert mib_now - mib < allowed_mib, (first, second)
            assert threads_now <= threads_before + 14  # Pools that were not full yet.
            assert files_now <= files_before + 16  # Connections to the database, likewise.
        # The server is as good as new.
        call = generate(channel, story("a dog", steps=20))
        until_step(call)
        assert record(channel, create(channel, story("a cat"))).story_id
