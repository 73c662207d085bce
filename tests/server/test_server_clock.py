"""The store's clock jumps while stories run, as machines' clocks do: no story is lost, made twice or failed for it."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server import story_run
from storyloom_server.access import Gate
from storyloom_server.catalog import ModelCatalog
from storyloom_server.characters import Characters
from storyloom_server.desk import Desk
from storyloom_server.metrics import Metrics
from storyloom_server.orders import OrderTaker
from storyloom_server.pictures import PictureLimits
from storyloom_server.safety import Safety
from storyloom_server.scheduler import Admission
from storyloom_server.store import Store, StoreOptions, leases
from storyloom_server.store import Story as StoredStory
from storyloom_server.story_run import StoryRun, Workshop
from storyloom_server.supervisor import Supervisor
from storyloom_server.tenants import Tenant
from storyloom_server.tracing import Tracing
from tests.server.engines import engine_options, spec, supervised
from tests.server.journals import TurnedClock
from tests.server.serving import story

DAY, HOUR, LEASE = 86_400.0, 3600.0, 3.0
STORIES = 6
TENANT = Tenant("studio")


class Office:
    """A desk that keeps house, with all that it needs but the network."""

    def __init__(self, folder: Path, model: Path, engine: Supervisor, clock: TurnedClock) -> None:
        self.store = Store.open(StoreOptions(folder=folder, lease_seconds=LEASE), clock=clock)
        self.encoders = ThreadPoolExecutor(1)
        self._catalog = ModelCatalog.load([model])
        safety, gate = Safety("off", []), Gate(None)
        workshop = Workshop(self.store, engine, self.encoders, Metrics("test", ["tiny"]), safety, 5)
        admission = Admission(max_open=100, max_open_per_tenant=100, max_rows=48)
        self.desk = Desk(workshop, self._catalog, gate, Tracing(), admission)
        characters = Characters(self.store, PictureLimits(4, 16))
        self._orders = OrderTaker(self._catalog, characters, safety)

    async def accept(self, prompt: str, steps: int) -> str:
        request = pb.CreateStoryRequest(story=story(prompt, steps=steps))
        return await self.desk.accept(TENANT, await self._orders.new_story(TENANT, request))

    async def end(self, story_id: str) -> pb.StoryRecord:
        """Reads a story to its end: every number once, and rising."""
        numbers = [event.sequence async for event in self.desk.events(story_id, TENANT, 0)]
        assert numbers == sorted(set(numbers))
        return await self.desk.record(story_id, TENANT)


@asynccontextmanager
async def office(folder: Path, model: Path, clock: TurnedClock) -> AsyncIterator[Office]:
    async with supervised(engine_options(spec("tiny"))) as engine:
        opened = Office(folder, model, engine, clock)
        house = asyncio.create_task(opened.desk.keep_house(LEASE))
        try:
            yield opened
        finally:
            house.cancel()
            await opened.desk.leave()
            await opened.store.close()
            opened.encoders.shutdown()


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
                while watched.renewed == renewed:  # The house was kept once more.
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
