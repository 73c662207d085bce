"""What one open story keeps in the store. Every call waits for the store as long as it takes: a full disk or a locked
database must not cost a story.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from storyloom_server.logs import fields
from storyloom_server.metrics import Metrics
from storyloom_server.store import Artifact, ArtifactKind, Store, Transaction, journal
from storyloom_server.store.errors import (
    BlobDamagedError,
    BlobMissingError,
    NotFoundError,
    StorageFullError,
    StoreBusyError,
    StoreUnavailableError,
)

log = logging.getLogger("storyloom.story")

_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")

_LONGEST_PAUSE_SECONDS = 10.0


class Shelf:
    """A story's part of the store.

    Args:
        store: of the server.
        metrics: get the time that writes take.
        story_id: of the story.
    """

    def __init__(self, store: Store, metrics: Metrics, story_id: str) -> None:
        self._store = store
        self._metrics = metrics
        self._story_id = story_id

    async def write(
        self,
        operation: Callable[Concatenate[Transaction, _Parameters], _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Runs an operation of the store."""
        began = time.monotonic()
        result = await self._persist(lambda: self._store.write(operation, *args, **kwargs))
        self._metrics.store_written(time.monotonic() - began)
        return result

    async def save(self, kind: ArtifactKind, position: int, data: bytes) -> Artifact:
        """Stores a blob that an event is going to refer to."""
        return await self._persist(lambda: self._store.save(self._story_id, kind, position, data))

    async def keep(self, kind: ArtifactKind, position: int, data: bytes) -> None:
        """Stores a blob in place of the one of the same kind and position."""
        await self._persist(lambda: self._store.keep(self._story_id, kind, position, data))

    async def load(self, kind: ArtifactKind, position: int, story_id: str = "") -> bytes:
        """What was kept of this story or another.

        Raises:
            NotFoundError: there is nothing of this kind at this position.
            BlobMissingError, BlobDamagedError: it is of no use.
        """
        kept = await self._artifacts(kind, story_id)
        found = next((artifact for artifact in kept if artifact.position == position), None)
        if found is None:
            raise NotFoundError(kind, str(position))
        return await self._persist(lambda: self._store.load(found.key))

    async def load_all(self, kind: ArtifactKind) -> Mapping[int, bytes]:
        """All of one kind that is of use, by position."""
        found = {}
        for artifact in await self._artifacts(kind):
            try:
                found[artifact.position] = await self._persist(partial(self._store.load, artifact.key))
            except (BlobMissingError, BlobDamagedError) as error:
                log.error("a %s is of no use", kind, extra=fields(story_id=self._story_id, why=error))
        return found

    async def _artifacts(self, kind: ArtifactKind, story_id: str = "") -> list[Artifact]:
        return list(await self._persist(lambda: self._store.read(journal.artifacts, story_id or self._story_id, kind)))

    async def _persist(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        pause = 0.1
        while True:
            try:
                return await call()
            except (StorageFullError, StoreBusyError, StoreUnavailableError) as error:
                log.error("the store refuses; the story waits", extra=fields(story_id=self._story_id, why=error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
