"""A story whose blobs were damaged meanwhile: it goes on where it can, and ends where it cannot."""

import asyncio
from pathlib import Path

import pytest

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.story_error import StoryError
from tests.server.journals import TurnedClock
from tests.server.offices import TENANT, Office, office


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", "0.02")


async def left_behind(folder: Path, model: Path, clock: TurnedClock, harm: str) -> str:
    """A story that was left after a few checkpoints, whose blobs were harmed since."""
    async with office(folder, model, clock) as first:
        story_id = await first.accept("a dog", 60)
        async for event in first.desk.archive.events(story_id, TENANT, 0):
            if event.event.progress.step == 20:
                break
    checkpoints = list((folder / "blobs").rglob("*checkpoint*"))
    assert checkpoints
    for file in checkpoints:
        if harm == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1])
    return story_id


async def finish(opened: Office, story_id: str) -> list[int]:
    """The steps that are told of until the story's end."""
    async with asyncio.timeout(60):
        return [event.event.progress.step async for event in opened.desk.archive.events(story_id, TENANT, 0)]


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_story_without_its_checkpoint_begins_anew(tiny_package: Path, tmp_path: Path, harm: str) -> None:
    async def run() -> None:
        clock = TurnedClock()
        story_id = await left_behind(tmp_path, tiny_package, clock, harm)
        async with office(tmp_path, tiny_package, clock) as second:
            steps = await finish(second, story_id)
            assert (await second.desk.archive.record(story_id, TENANT)).state == pb.STORY_STATE_FINISHED
            assert {1, 60} <= set(steps)

    asyncio.run(run())


def test_a_run_that_breaks_ends_the_story_and_tells_its_readers(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks it; here it is the encoder of pictures."""

    def broken(*args: object) -> bytes:
        raise OSError("no picture can be written")

    monkeypatch.setattr("storyloom_server.finished_frames.encode_png", broken)

    async def run() -> None:
        async with office(tmp_path, tiny_package, TurnedClock()) as opened:
            story_id = await opened.accept("a dog", 5)
            with pytest.raises(StoryError) as caught:
                await finish(opened, story_id)
            assert caught.value.reason == "SERVER_ERROR"
            record = await opened.desk.archive.record(story_id, TENANT)
            assert (record.state, record.failure.reason) == (pb.STORY_STATE_FAILED, "SERVER_ERROR")
            assert opened.desk.open_stories == 0

    asyncio.run(run())
