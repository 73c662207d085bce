"""What is deleted when: the rules as pure functions, and the sweeper that applies them."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from storyloom_server.store import cleanup
from storyloom_server.store.records import EndedStory
from storyloom_server.store.store import Store

_SELDOM_SECONDS, _OFTEN_SECONDS = 600.0, 1.0


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """For how long, and how much.

    Args:
        keep_seconds: how long after its end a story is kept that has no time of its own.
        tenant_bytes: size of a tenant's stories above which its oldest ended ones go; None: no limit.
        orphan_seconds: how long a blob may be without a row, while its story is being written.
    """

    keep_seconds: float = 30 * 86400.0
    tenant_bytes: int | None = None
    orphan_seconds: float = 3600.0

    @property
    def sweep_seconds(self) -> float:
        """How often to sweep: seldom, but often enough that few stories are kept for much longer than they should."""
        return min(_SELDOM_SECONDS, max(_OFTEN_SECONDS, self.keep_seconds / 4))


@dataclass(frozen=True, slots=True)
class SweepReport:
    """How many of each were deleted."""

    stories: int
    checkpoints: int
    orphans: int


def surplus(ended: Iterable[EndedStory], used_bytes: int, allowed_bytes: int) -> Sequence[str]:
    """The oldest ended stories of a tenant, as many as it takes to bring ``used_bytes`` down to what is allowed.

    Args:
        ended: oldest first.
    """
    chosen = []
    for story in ended:
        if used_bytes <= allowed_bytes:
            break
        chosen.append(story.id)
        used_bytes -= story.size_bytes
    return chosen


class Orphanage:
    """Remembers blobs without a row until they have been without one for long enough.

    It judges by the time since it saw a blob first, on a clock that does not jump, and asks no storage for dates.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._since: dict[str, float] = {}

    def take(self, orphans: Collection[str], now: float) -> Collection[str]:
        """Notes all blobs that have no row at ``now``, and returns those that may be deleted."""
        self._since = {key: self._since.get(key, now) for key in orphans}
        return [key for key, since in self._since.items() if now - since >= self._grace_seconds]


class Sweeper:
    """Applies a policy to a store, whenever ``sweep`` is called. Several servers may sweep one store at once."""

    def __init__(
        self, store: Store, policy: RetentionPolicy, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._policy = policy
        self._monotonic = monotonic
        self._orphanage = Orphanage(policy.orphan_seconds)

    async def sweep(self) -> SweepReport:
        """Deletes what may go. It looks at every blob's name, so call it every few minutes at most."""
        stories = await self._forget_expired() + await self._forget_surplus()
        return SweepReport(stories, await self._drop_checkpoints(), await self._collect_orphans())

    async def _forget_expired(self) -> int:
        forgotten = 0
        while story_ids := await self._store.read(cleanup.expired, self._policy.keep_seconds):
            forgotten += await self._forget(story_ids)
        return forgotten

    async def _forget_surplus(self) -> int:
        allowed = self._policy.tenant_bytes
        if allowed is None:
            return 0
        forgotten = 0
        for tenant, used in await self._store.read(cleanup.tenants_above, allowed):
            forgotten += await self._forget(surplus(await self._store.read(cleanup.ended, tenant), used, allowed))
        return forgotten

    async def _forget(self, story_ids: Sequence[str]) -> int:
        for story_id in story_ids:
            await self._store.delete(await self._store.write(cleanup.forget, story_id))
        return len(story_ids)

    async def _drop_checkpoints(self) -> int:
        dropped = 0
        while keys := await self._store.write(cleanup.drop_checkpoints):
            await self._store.delete(keys)
            dropped += len(keys)
        return dropped

    async def _collect_orphans(self) -> int:
        orphans: set[str] = set()
        async for keys in self._store.blob_keys(cleanup.MOST_KEYS):
            orphans |= await self._store.read(cleanup.unknown, keys)
        collected = self._orphanage.take(orphans, self._monotonic())
        await self._store.delete(collected)
        return len(collected)
