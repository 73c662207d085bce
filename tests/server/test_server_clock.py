"""The store's clock jumps while stories run, as machines' clocks do: no story is lost, made twice or failed for it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server import story_run
from storyloom_server.store import Story as StoredStory
from storyloom_server.store import leases
from storyloom_server.story_run import StoryRun
from tests.server.journals import TurnedClock
from tests.server.offices import office

DAY, HOUR = 86_400.0, 3600.0
STORIES = 6


class Watched:
    """What happened behind the desk: which stories were run, adopted and renewed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.adopted: list[str] = []
        self.renewed = 0
        run, adopt, renew = StoryRun.run, leases.adopt, leases.renew

        async def watched_run(self_: StoryRun) -> None:
            self.runs.append(self_.story.story_id)
            await run(self_)

        def watched_adopt(*args: Any, **kwargs: Any) -> Any:
            found: list[StoredStory] = list(adopt(*args, **kwargs))
            self.adopted += [one.id for one in found]
            return found

        def watched_renew(*args: Any, **kwargs: Any) -> Any:
            renewal = renew(*args, **kwargs)
            assert not renewal.cancelled
            self.renewed += 1
            return renewal

        monkeypatch.setattr(story_run.StoryRun, "run", watched_run)
        monkeypatch.setattr(leases, "adopt", watched_adopt)
        monkeypatch.setattr(leases, "renew", watched_renew)


@pytest.mark.parametrize("jumps", [[DAY], [-HOUR], [DAY, -2 * DAY], [-HOUR, DAY, -HOUR, DAY]], ids=str)
def test_running_stories_do_not_notice(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jumps: list[float]
) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", "0.05")
    clock, watched = TurnedClock(), Watched(monkeypatch)

    async def run() -> list[pb.StoryRecord]:
        async with office(tmp_path, tiny_package, clock) as opened:
            made = [await opened.accept(f"a dog {number}", 100) for number in range(STORIES)]
            reading = [asyncio.create_task(opened.end(story_id)) for story_id in made]
            for jump in jumps:
                renewed = watched.renewed
                clock.time += jump
                made.append(await opened.accept("a cat", 10))
                reading.append(asyncio.create_task(opened.end(made[-1])))
                while watched.renewed == renewed:  # noqa: ASYNC110 - until the house was kept once more.
                    await asyncio.sleep(0.05)
            records = await asyncio.gather(*reading)
            assert sorted(watched.runs) == sorted(made)
            assert opened.desk.open_stories == 0
            return records

    records = asyncio.run(run())
    assert [pb.StoryState.Name(record.state) for record in records] == ["STORY_STATE_FINISHED"] * len(records)
    assert watched.adopted == []


@pytest.mark.parametrize("jump", [DAY, -HOUR], ids=["forward", "back"])
def test_stories_left_behind_are_adopted_once_after_a_jump(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    monkeypatch.setenv("STORYLOOM_TEST_STEP_SECONDS", "0.02")
    clock, watched = TurnedClock(), Watched(monkeypatch)

    async def run() -> None:
        async with office(tmp_path, tiny_package, clock) as first:
            made = [await first.accept(f"a dog {number}", 60) for number in range(STORIES)]
            await asyncio.sleep(0.3)
        assert sorted(watched.runs) == sorted(made)
        clock.time += jump
        async with office(tmp_path, tiny_package, clock) as second:
            for story_id in made:
                assert (await second.end(story_id)).state == pb.STORY_STATE_FINISHED
        assert sorted(watched.adopted) == sorted(made)
        assert sorted(watched.runs) == sorted(2 * made)

    asyncio.run(run())
