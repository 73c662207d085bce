"""Takes stories in and keeps those that are open going.

A story is accepted when it is in the store: from then on it ends as finished, failed or cancelled, whatever happens to
this process. Open stories that nobody works on, of an earlier life of this server or of one that died, are adopted.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from storyloom_server import errors, story_records
from storyloom_server.accepted_story import AcceptedStory, logged
from storyloom_server.access import Gate
from storyloom_server.archive import Archive
from storyloom_server.catalog import ModelCatalog
from storyloom_server.logs import fields
from storyloom_server.messages import Scheduling
from storyloom_server.orders import Order
from storyloom_server.references import References
from storyloom_server.scheduler import Admission, Priority, Progress, Refused
from storyloom_server.store import (
    NewStory,
    Quota,
    Store,
    Story,
    StoryFeatures,
    StoryState,
    features,
    journal,
    leases,
)
from storyloom_server.store.errors import StoreError
from storyloom_server.story_error import StoryError
from storyloom_server.story_run import StoryRun
from storyloom_server.supervisor import EngineStatus, Supervisor
from storyloom_server.tenants import Tenant
from storyloom_server.tracing import Tracing
from storyloom_server.validate import StoryPlan, plan_story
from storyloom_server.workshop import Workshop

log = logging.getLogger("storyloom.desk")

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

# How long a call waits for a story to be cancelled.
_CANCEL_SECONDS = 0.5
# Of engines and servers that worked on a story.
_DEATHS_TO_GIVE_UP = 5


class Desk:
    """Every story of this server. Use it on one event loop.

    Args:
        workshop: what runs share.
        catalog: the served models.
        gate: knows the tenants of adopted stories, and counts new ones against their tenants' rates.
        tracing: begins the trace of each story.
        admission: which stories may be accepted.
        references: knows, or finds out, how characters with references look.
        keep_seconds: how long ended stories are kept.
    """

    def __init__(
        self,
        workshop: Workshop,
        catalog: ModelCatalog,
        gate: Gate,
        tracing: Tracing,
        admission: Admission,
        references: References,
        keep_seconds: float,
    ) -> None:
        self._workshop = workshop
        self._store: Store = workshop.store
        self._engine: Supervisor = workshop.engine
        self._catalog = catalog
        self._gate = gate
        self._tracing = tracing
        self._admission = admission
        self._references = references
        self._runs: dict[str, StoryRun] = {}
        self._archive = Archive(workshop.store, self._runs, keep_seconds)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._accepting: dict[str, AcceptedStory] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    async def accept(self, tenant: Tenant, order: Order, metadata: Metadata = ()) -> str:
        """Accepts a story, or finds the one that the same request made before, and returns its id.

        Only a story that is new, and that there is room for, counts against the tenant's rate.

        Raises:
            StoryError: the server is not open, or cannot take the story now.
            StoreError: it could not be stored, or the tenant's quota is used up.
        """
        self._check_open()
        if order.request_id:
            found = await self._store.read(journal.find_request, tenant.name, order.request_id, order.digest)
            if found is not None:
                return found.id
        self._gate.check_priority(tenant, order.priority)
        story = AcceptedStory(
            story_id=str(uuid.uuid4()),
            tenant=tenant.name,
            plan=order.plan,
            scheduling=_scheduling(tenant, order.priority, order.deadline_seconds),
            accepted_at=time.time(),
            parent_id=order.parent_id,
            reused=order.reused,
            prompt_flags=order.prompt_flags,
        )
        self._admit(story, order)
        self._gate.count_story(tenant)
        # Counted from here on.
        self._accepting[story.story_id] = story
        try:
            began = time.monotonic()
            looks = await self._references.features_of(tenant.name, story.plan, order.sources, order.parent_id)
            story = replace(story, plan=_with_features(story.plan, looks), looked=(began, time.monotonic()))
            # Stored and started whether or not the caller is still there then.
            storing = asyncio.ensure_future(self._store_and_start(story, looks, order, tenant, metadata))
        except BaseException:
            del self._accepting[story.story_id]
            raise
        return await asyncio.shield(storing)

    async def _store_and_start(
        self,
        story: AcceptedStory,
        looks: tuple[StoryFeatures, ...],
        order: Order,
        tenant: Tenant,
        metadata: Metadata,
    ) -> str:
        new = NewStory(
            id=story.story_id,
            tenant=tenant.name,
            request=story_records.stored_request(story),
            request_digest=order.digest,
            model=order.plan.model,
            frames=len(order.plan.job.frames),
            request_id=order.request_id or None,
            title=order.plan.story.title,
            priority=order.priority,
            deadline_at=None if order.deadline_seconds is None else story.accepted_at + order.deadline_seconds,
            parent_id=order.parent_id or None,
            features=looks,
        )
        quota = Quota(open_stories=tenant.limits.open_stories, size_bytes=tenant.limits.stored_bytes)
        try:
            accepted = await self._store.write(journal.accept, new, quota)
        finally:
            del self._accepting[story.story_id]
        if not accepted.existing:
            self._start(story, metadata)
        return accepted.story.id

    @property
    def archive(self) -> Archive:
        """What there is to read of stories, of those here and of all others."""
        return self._archive

    def abandon(self, story_id: str) -> None:
        """Cancels a story of this server whose only reader has left. One that drains is left to a later server."""
        run = self._runs.get(story_id)
        if run is not None and not self._draining:
            run.stop(errors.story_cancelled())

    async def cancel(self, story_id: str, tenant: Tenant) -> None:
        """Cancels a story wherever it runs, and waits a moment for it to be so. An ended one stays as it is.

        Raises:
            NotFoundError: the tenant has no such story.
        """
        await self._store.write(journal.request_cancel, story_id, tenant.name)
        run = self._runs.get(story_id)
        if run is not None:
            run.stop(errors.story_cancelled())
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await asyncio.shield(self._tasks[story_id])

    @property
    def waiting(self) -> int:
        """Stories here of which nothing has been made yet."""
        return sum(not run.left_queue for run in self._runs.values())

    @property
    def working(self) -> int:
        """Stories here that have left the queue."""
        return len(self._runs) - self.waiting

    @property
    def open_stories(self) -> int:
        """Stories that this server works on."""
        return len(self._runs)

    async def wait_unused(self, model: str) -> None:
        """Waits until no open story needs a model."""
        users = [self._tasks[story_id] for story_id, run in self._runs.items() if run.story.plan.model == model]
        await asyncio.gather(*(asyncio.wait([task]) for task in users))

    def drain(self) -> None:
        """Refuses new stories from now on; those that are open go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Waits until no story is open here."""
        await self._idle.wait()

    async def leave(self) -> None:
        """Stops work on every open story and leaves it to a later server; tells those who read along."""
        tasks = list(self._tasks.values())
        runs = list(self._runs.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in runs:
            run.log.close(errors.draining())
        with suppress(StoreError):
            await self._store.write(leases.release)

    async def keep_house(self, lease_seconds: float) -> None:
        """Renews the leases of open stories, cancels what other servers were asked to cancel, adopts what nobody works
        on. Runs until it is cancelled.
        """
        # Stories that an earlier life of this server left are taken up as soon as there is an engine for them.
        await self._engine.wait_for(EngineStatus.READY)
        while True:
            try:
                await self._renew()
                if self._engine.status is EngineStatus.READY and not self._draining:
                    await self._adopt()
            except StoreError as error:
                log.warning("the store did not answer", extra=fields(why=error))
            await asyncio.sleep(lease_seconds / 3)

    async def _renew(self) -> None:
        if not self._runs:
            return
        renewal = await self._store.write(leases.renew, list(self._runs))
        for story_id in renewal.cancelled & self._runs.keys():
            self._runs[story_id].stop(errors.story_cancelled())
        for story_id in renewal.lost & self._runs.keys():
            # Ended a moment ago, or another server thought this one dead.
            log.warning("a story is no longer this server's", extra=fields(story_id=story_id))
            self._runs[story_id].stop(errors.story_moved())

    async def _adopt(self) -> None:
        for story in await self._store.write(leases.adopt, list(self._runs), models=self._catalog.names):
            try:
                adopted = await self._restore(story)
            except StoryError as error:
                log.error("an adopted story cannot be made any more", extra=fields(story_id=story.id))
                await self._store.write(journal.finish, story.id, StoryState.FAILED, error=error.to_bytes())
                continue
            log.info("story adopted", extra=fields(story_id=story.id, crashes=story.crashes))
            self._start(adopted)
            if story.cancel_requested:
                self._runs[story.id].stop(errors.story_cancelled())

    async def _restore(self, story: Story) -> AcceptedStory:
        """An accepted story from what was stored of it."""
        request = story_records.read_request(await self._store.read(journal.request, story.id))
        plan = plan_story(request.story, self._catalog)
        if not isinstance(plan, StoryPlan):
            raise errors.invalid_story(plan)
        if plan.wanted:
            plan = _with_features(plan, await self._store.read(features.of_story, story.id))
        if story.crashes >= _DEATHS_TO_GIVE_UP:
            raise errors.engine_crashed(story.crashes)
        remaining = None if story.deadline_at is None else story.deadline_at - time.time()
        return AcceptedStory(
            story_id=story.id,
            tenant=story.tenant,
            plan=plan,
            scheduling=_scheduling(self._gate.named(story.tenant), Priority(story.priority), remaining),
            accepted_at=story.created_at,
            parent_id=story.parent_id or "",
            reused=request.reused,
            prompt_flags=request.prompt_flags,
            crashes=story.crashes,
            sequence_reserved=story.sequence_reserved,
            events=tuple(logged(stored) for stored in await self._archive.stored_events(story.id)),
        )

    def _check_open(self) -> None:
        if self._draining:
            raise errors.draining()
        match self._engine.status:
            case EngineStatus.STARTING:
                raise errors.starting()
            case EngineStatus.RESTARTING | EngineStatus.FAILED | EngineStatus.CLOSED:
                raise errors.engine_restarting()

    def _admit(self, story: AcceptedStory, order: Order) -> None:
        now = time.monotonic()
        left = min((each for each in (order.deadline_seconds, order.call_seconds) if each is not None), default=None)
        deadline = None if left is None else now + left
        admission = replace(self._admission, max_story_row_megapixels=self._engine.largest_story)
        decision = admission.decide(
            story.spec(deadline),
            [
                *(run.progress for run in self._runs.values()),
                *(Progress(accepting.spec(None)) for accepting in self._accepting.values()),
            ],
            self._engine.coefficients,
            now=now,
        )
        if isinstance(decision, Refused):
            raise errors.refused(decision, open_stories=len(self._runs), left_seconds=left)

    def _start(self, story: AcceptedStory, metadata: Metadata = ()) -> None:
        frames = len(story.plan.job.frames)
        trace = self._tracing.story(metadata, story.story_id, model=story.plan.model, frames=frames)
        if story.plan.wanted and story.looked is not None:
            trace.stage("references", *story.looked, characters=len(story.plan.wanted))
        run = self._runs[story.story_id] = StoryRun(story, self._workshop, trace, self.waiting)
        log.info(
            "story accepted",
            extra=fields(story_id=story.story_id, model=story.plan.model, frames=frames, open=len(self._runs)),
        )
        task = asyncio.create_task(run.run(), name=f"story-{story.story_id}")
        self._tasks[story.story_id] = task
        self._idle.clear()
        task.add_done_callback(lambda done: self._close(story.story_id, done))

    def _close(self, story_id: str, task: asyncio.Task[None]) -> None:
        run = self._runs.pop(story_id)
        del self._tasks[story_id]
        if not self._runs:
            self._idle.set()
        if not task.cancelled() and task.exception() is not None:
            # A defect of ours. The story stays open in the store, and is adopted when its lease has run out.
            log.error("a story's run broke", exc_info=task.exception(), extra=fields(story_id=story_id))
            run.log.close(errors.story_moved())


def _with_features(plan: StoryPlan, looks: Sequence[StoryFeatures]) -> StoryPlan:
    try:
        return plan.with_features(looks)
    except KeyError as error:
        raise errors.storage_damaged() from error


def _scheduling(tenant: Tenant, priority: Priority, deadline_seconds: float | None) -> Scheduling:
    deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
    return Scheduling(tenant=tenant.name, weight=tenant.weight, priority=priority, deadline=deadline)
