"""All stories of the store, open and ended, as clients read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server import story_records
from storyloom_server.accepted_story import logged
from storyloom_server.event_log import LoggedEvent
from storyloom_server.store import Event, Store, StoryState, journal
from storyloom_server.story_error import StoryError
from storyloom_server.story_run import StoryRun
from storyloom_server.tenants import Tenant

# How soon a reader of a story that another server works on hears of a new event.
_POLL_SECONDS = 0.5
# Above the number of durable events that a story can have.
_ALL_EVENTS = 10_000
# What the store's integers hold; clients may ask for events after a larger number, of which there are none.
_LAST_SEQUENCE = 2**63 - 1


class Archive:
    """Use it on one event loop.

    Args:
        store: has every story.
        runs: of the stories that this server works on, by id; they know of events before the store does.
        keep_seconds: how long ended stories are kept.
    """

    def __init__(self, store: Store, runs: Mapping[str, StoryRun], keep_seconds: float) -> None:
        self._store = store
        self._runs = runs
        self._keep_seconds = keep_seconds

    async def events(self, story_id: str, tenant: Tenant, after: int) -> AsyncIterator[LoggedEvent]:
        """Every event of a story after a sequence number, as they come.

        Raises:
            NotFoundError: the tenant has no such story.
            StoryError: what the story ended with, after its last event.
        """
        while True:
            run = self._runs.get(story_id)
            if run is not None and run.story.tenant == tenant.name:
                async for event in run.log.after(after):
                    yield event
                return
            story = await self._store.read(journal.get, story_id, tenant.name)
            for stored in await self.stored_events(story_id, after):
                after = stored.sequence
                yield logged(stored)
            if not story.state.is_open:
                if story.error is not None:
                    raise StoryError.from_bytes(story.error)
                return
            # It runs on another server, or is about to be adopted here.
            await asyncio.sleep(_POLL_SECONDS)

    async def complete(self, event: LoggedEvent) -> pb.GenerateStoryResponse:
        """An event with its picture."""
        if not event.picture:
            return event.event
        complete = pb.GenerateStoryResponse()
        complete.CopyFrom(event.event)
        complete.frame.image.png = await self._store.load(event.picture)
        return complete

    async def record(self, story_id: str, tenant: Tenant, *, pictures: bool = False) -> pb.StoryRecord:
        """All that is known of a story.

        Raises:
            NotFoundError: the tenant has no such story.
        """
        story = await self._store.read(journal.get, story_id, tenant.name)
        events = [logged(stored) for stored in await self.stored_events(story_id)]
        complete = [await self.complete(event) if pictures else event.event for event in events]
        request = await self._store.read(journal.request, story_id)
        record = story_records.public_record(story, request, complete, self._keep_seconds)
        run = self._runs.get(story_id)
        if run is not None:
            record.last_sequence = max(record.last_sequence, run.log.last_sequence)
        return record

    async def parent(self, story_id: str, tenant: Tenant) -> pb.StoryRecord:
        """A story to go on from: its record, with all that it was asked for.

        Raises:
            NotFoundError: the tenant has no such story.
        """
        record = await self.record(story_id, tenant)
        request = await self._store.read(journal.request, story_id)
        record.story.CopyFrom(story_records.read_request(request).story)
        return record

    async def list(
        self, tenant: Tenant, state: StoryState | None, size: int, token: str
    ) -> tuple[Sequence[pb.StoryRecord], str]:
        """A page of the tenant's stories, newest first and without their frames; and the next page's token."""
        page = await self._store.read(journal.list_stories, tenant.name, state=state, size=size, token=token)
        requests = [await self._store.read(journal.request, story.id) for story in page.items]
        records = [
            story_records.public_record(story, request, (), self._keep_seconds)
            for story, request in zip(page.items, requests, strict=True)
        ]
        return records, page.next_token

    async def stored_events(self, story_id: str, after: int = 0) -> Sequence[Event]:
        """All stored events of a story: two for the story and one for each frame."""
        after = min(after, _LAST_SEQUENCE)
        return await self._store.read(journal.events, story_id, after=after, limit=_ALL_EVENTS)
