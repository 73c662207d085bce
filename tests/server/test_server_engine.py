"""The engine process and its client, with a backend that has no model: life, failure and death."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.prompts import ComposedPrompt
from storyloom_server import messages
from storyloom_server.engine import EngineOptions, ModelSpec
from storyloom_server.engine_client import EngineClient, EngineStatus, OpenStory, QueueFullError
from tests.server.serving import NULL_BACKEND, START_SECONDS, gone


def job(text: str = "a cat", *, frames: int = 2, steps: int = 3, adapter: str | None = None) -> StoryJob:
    return StoryJob(
        frames=tuple(FrameJob(ComposedPrompt(text), seed=1000 + index) for index in range(frames)),
        negative_prompt="",
        steps=steps,
        guidance_scale=5.0,
        solver="ddim",
        width=16,
        height=16,
        adapter=adapter,
        cross_frame=True,
    )


def submit(story_id: str, story: StoryJob, preview_interval: int = 0) -> messages.Submit:
    return messages.Submit(story_id, "null", story, preview_interval)


def options(folder: Path = Path("null"), max_rows: int = 8) -> EngineOptions:
    return EngineOptions(
        models=(ModelSpec("null", folder, job()),),
        backend=NULL_BACKEND,
        device="cpu",
        max_rows=max_rows,
        threads=None,
        log_level="info",
        log_format="text",
    )


@asynccontextmanager
async def engine(max_rows: int = 8, max_queue: int = 8) -> AsyncIterator[EngineClient]:
    client = EngineClient(options(max_rows=max_rows), max_queue)
    client.start()
    try:
        async with asyncio.timeout(START_SECONDS):
            await client.wait_settled()
        assert client.status is EngineStatus.READY
        yield client
    finally:
        await client.close()


async def read(story: OpenStory) -> list[messages.ToReader]:
    """Every message of a story, to its end."""
    ends = (messages.StoryFinished, messages.StoryFailed, messages.EngineLost, messages.Dropped)
    received: list[messages.ToReader] = []
    async with asyncio.timeout(60):
        while not received or not isinstance(received[-1], ends):
            received.append(await story.next())
    return received


def kinds(received: list[messages.ToReader]) -> list[str]:
    return [type(message).__name__ for message in received]


def test_a_story_runs_from_encoding_to_its_last_frame() -> None:
    async def run() -> list[messages.ToReader]:
        async with engine() as client:
            return await read(client.submit(submit("a", job(steps=4), preview_interval=2)))

    received = asyncio.run(run())
    assert kinds(received) == [
        "EncodingStarted",
        *["Stepped"] * 3,
        "Preview",
        *["Stepped"] * 2,
        "DecodingStarted",
        *["FrameDone"] * 2,
        "StoryFinished",
    ]
    steps = [message.step for message in received if isinstance(message, messages.Stepped)]
    assert steps == [0, 1, 2, 3, 4]
    preview = next(message for message in received if isinstance(message, messages.Preview))
    assert (preview.step, len(preview.frames)) == (2, 2)
    frames = [message for message in received if isinstance(message, messages.FrameDone)]
    assert [frame.frame_index for frame in frames] == [0, 1]
    assert frames[1].pixels == messages.Pixels(16, 16, bytes([1001 % 251, 1001 // 251, 0]) * 256)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("raise-encode", "ENGINE_ERROR"),
        ("raise-step", "ENGINE_ERROR"),
        ("raise-decode", "ENGINE_ERROR"),
        ("raise-preview", "ENGINE_ERROR"),
        ("diverge", "STORY_DIVERGED"),
    ],
)
def test_a_bad_story_fails_alone(word: str, reason: str) -> None:
    async def run() -> tuple[list[messages.ToReader], ...]:
        async with engine() as client:
            stories = [
                client.submit(submit(story_id, job(text), preview_interval=1))
                for story_id, text in (("good", "a cat"), ("bad", f"a {word} dog"), ("late", "a bird"))
            ]
            return tuple([await read(story) for story in stories])

    good, bad, late = asyncio.run(run())
    assert isinstance(bad[-1], messages.StoryFailed)
    assert bad[-1].reason == reason
    for fine in (good, late):
        assert isinstance(fine[-1], messages.StoryFinished)
        steps = [message.step for message in fine if isinstance(message, messages.Stepped)]
        assert steps == [0, 1, 2, 3]


def test_the_queue_is_bounded_and_tells_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", "0.05")

    async def run() -> tuple[list[int], list[messages.ToReader]]:
        async with engine(max_rows=4, max_queue=2) as client:
            first = client.submit(submit("first", job(steps=8)))
            assert isinstance(await first.next(), messages.EncodingStarted)
            waiting = [client.submit(submit(name, job(steps=2))) for name in ("second", "third")]
            with pytest.raises(QueueFullError):
                client.submit(submit("fourth", job()))
            client.release("second")
            client.submit(submit("fifth", job(steps=1)))
            return [story.queue_position for story in waiting], await read(waiting[1])

    positions, third = asyncio.run(run())
    assert positions == [0, 1]
    assert third[0] == messages.QueuePosition("third", 0)
    assert isinstance(third[-1], messages.StoryFinished)


def test_a_released_story_gives_its_rows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", "0.05")

    async def run() -> float:
        async with engine(max_rows=4) as client:
            endless = client.submit(submit("endless", job(steps=10_000)))
            while not isinstance(await endless.next(), messages.Stepped):
                pass
            next_one = client.submit(submit("next", job(steps=1)))
            client.release("endless")
            began = time.monotonic()
            received = await read(next_one)
            assert isinstance(received[-1], messages.StoryFinished)
            client.release("next")
            async with asyncio.timeout(10):
                await client.wait_idle()
            return time.monotonic() - began

    # Ten thousand steps would take minutes.
    assert asyncio.run(run()) < 60


def test_killing_the_engine_tells_every_open_story() -> None:
    async def run() -> None:
        async with engine() as client:
            stories = [client.submit(submit(name, job(steps=10_000_000))) for name in ("a", "b")]
            pid = client.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            for story in stories:
                assert isinstance((await read(story))[-1], messages.EngineLost)
            assert client.status is EngineStatus.LOST
            with pytest.raises(RuntimeError, match="lost"):
                client.submit(submit("c", job()))

    asyncio.run(run())


def test_closing_leaves_no_process_even_in_the_middle_of_a_story() -> None:
    async def run() -> int:
        async with engine() as client:
            client.submit(submit("a", job(steps=10_000_000)))
            await asyncio.sleep(0.1)
            assert client.pid is not None
            return client.pid

    assert gone(asyncio.run(run()))


def test_a_model_that_does_not_load_ends_the_engine() -> None:
    async def run() -> EngineStatus:
        client = EngineClient(options(folder=Path("break-load")), 8)
        client.start()
        async with asyncio.timeout(START_SECONDS):
            await client.wait_settled()
        status = client.status
        await client.close()
        return status

    assert asyncio.run(run()) is EngineStatus.LOST


def test_a_slow_reader_loses_previews_but_no_frame() -> None:
    story = OpenStory(queue_position=0)
    for step in range(100):
        story.put(messages.Stepped("a", step, 100))
        story.put(messages.Preview("a", step, ()))
    for index in range(12):
        story.put(messages.FrameDone("a", index, messages.Pixels(1, 1, b"abc")))
    story.put(messages.StoryFinished("a", 0, 0, 0))
    received = asyncio.run(read(story))
    assert len(received) < 60
    assert kinds(received)[-13:] == ["FrameDone"] * 12 + ["StoryFinished"]
