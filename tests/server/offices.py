"""A desk with all that it needs but the network: store, engine process and clock."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.access import Gate
from storyloom_server.catalog import ModelCatalog
from storyloom_server.characters import Characters
from storyloom_server.desk import Desk
from storyloom_server.metrics import Metrics
from storyloom_server.orders import OrderTaker
from storyloom_server.pictures import PictureLimits
from storyloom_server.poses import Poses
from storyloom_server.references import References
from storyloom_server.safety import Safety
from storyloom_server.scheduler import Admission
from storyloom_server.store import Store, StoreOptions
from storyloom_server.supervisor import Supervisor
from storyloom_server.tenants import Tenant
from storyloom_server.tracing import Tracing
from storyloom_server.workshop import Workshop
from tests.server.engines import engine_options, spec, supervised
from tests.server.journals import TurnedClock
from tests.server.serving import story

LEASE = 3.0
TENANT = Tenant("studio")


class Office:
    """A desk that keeps house, with all that it needs but the network."""

    def __init__(self, folder: Path, model: Path, engine: Supervisor, clock: TurnedClock) -> None:
        self.store = Store.open(StoreOptions(folder=folder, lease_seconds=LEASE), clock=clock)
        self.encoders = ThreadPoolExecutor(1)
        self._catalog = ModelCatalog.load([model])
        safety, gate = Safety("off", []), Gate(None)
        metrics = Metrics("test", ["tiny"])
        workshop = Workshop(self.store, engine, self.encoders, metrics, safety, 5, 0.0)
        admission = Admission(max_open=100, max_open_per_tenant=100, max_rows=48)
        references = References(self.store, engine, metrics, PictureLimits(4, 16), safety)
        self.desk = Desk(workshop, self._catalog, gate, Tracing(), admission, references, keep_seconds=3600.0)
        poses = Poses(self._catalog, PictureLimits(4, 16), safety)
        characters = Characters(self.store, self._catalog, references)
        self._orders = OrderTaker(self._catalog, characters, references, poses, safety)

    async def accept(self, prompt: str, steps: int) -> str:
        request = pb.CreateStoryRequest(story=story(prompt, steps=steps))
        return await self.desk.accept(TENANT, await self._orders.new_story(TENANT, request))

    async def end(self, story_id: str) -> pb.StoryRecord:
        """Reads a story to its end: every number once, and rising."""
        numbers = [event.sequence async for event in self.desk.archive.events(story_id, TENANT, 0)]
        assert numbers == sorted(set(numbers))
        return await self.desk.archive.record(story_id, TENANT)


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
