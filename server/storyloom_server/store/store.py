"""The store as the server uses it: from the event loop, which never waits for a disk or a lock."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL

from storyloom_server.store import journal, schema
from storyloom_server.store.blobs import Blobs
from storyloom_server.store.database import Database, Owner, Transaction, connect, database_clock, system_clock
from storyloom_server.store.folder import StateFolder
from storyloom_server.store.records import Artifact, ArtifactKind
from storyloom_server.store.writer import GroupWriter

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_READERS = 4
_BLOB_THREADS = 8
_FOLDER = "stories"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where things are kept.

    Args:
        folder: the server's own state folder. Servers that share a database have one each.
        database: ``postgresql://...`` for several servers; None: an SQLite file in the folder.
        blobs: a URL as for ``Blobs``; None: ``blobs`` in the folder.
        lease_seconds: after a server's death, others take its stories over when this time has passed.
    """

    folder: Path
    database: str | None = None
    blobs: str | None = None
    lease_seconds: float = 30.0


class Store:
    """The database and the blobs of one server.

    The operations are the functions of ``journal``, ``leases``, ``characters``, ``quotas`` and ``cleanup``::

        accepted = await store.write(journal.accept, new_story)
        events = await store.read(journal.events, story_id, after=17)

    Any function whose first argument is a ``Transaction`` will do; all that one call of ``write`` does is stored
    together or not at all.
    """

    def __init__(self, folder: StateFolder, database: Database, blobs: Blobs) -> None:
        self._folder = folder
        self._database = database
        self._blobs = blobs
        self._writer = GroupWriter(database)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="store-reader")
        self._blob_threads = ThreadPoolExecutor(_BLOB_THREADS, thread_name_prefix="store-blobs")

    @classmethod
    def open(cls, options: StoreOptions, *, clock: Callable[[Connection], float] | None = None) -> Store:
        """Locks the folder and brings the database's tables up to date. Blocks.

        Args:
            clock: gives epoch seconds; None: the database server's clock on PostgreSQL, this machine's on SQLite.

        Raises:
            StoreSetupError: something cannot be used as told.
            StoreUnavailableError, StorageFullError: the database or the blob storage does not serve.
        """
        folder = StateFolder(options.folder)
        try:
            file = URL.create("sqlite", database=str(folder.path / "stories.db"))
            engine = connect(options.database or file.render_as_string())
            schema.upgrade(engine)
            blobs = Blobs(options.blobs or str(folder.path / "blobs"))
            blobs.check(f"{_FOLDER}/check")
            owner = Owner(folder.replica, uuid.uuid4().hex)
            clock = clock or (database_clock if engine.dialect.name == "postgresql" else system_clock)
            database = Database(engine, owner, options.lease_seconds, clock)
            return cls(folder, database, blobs)
        except BaseException:
            folder.close()
            raise

    @property
    def owner(self) -> Owner:
        """Who this server is in the rows of stories."""
        return self._database.owner

    async def write(
        self,
        operation: Callable[Concatenate[Transaction, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Runs ``operation`` in a transaction, which is stored when this returns.

        Calls that come at the same time share a transaction where they can, in any order; ``operation`` may then run
        more than once, so it does nothing but read and write the database.
        """
        return await asyncio.wrap_future(self._writer.submit(lambda to: operation(to, *args, **kwargs)))

    async def read(
        self,
        operation: Callable[Concatenate[Transaction, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Runs ``operation``, which only reads; it does not wait for those that write."""

        def run() -> Result:
            with self._database.transaction(writes=False) as transaction:
                return operation(transaction, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def save(self, story_id: str, kind: ArtifactKind, position: int, data: bytes) -> Artifact:
        """Stores a blob. Until an event or ``keep`` refers to it, it may be collected as an orphan after a while."""
        # Few folders, so that none has to be made for each story, nor taken away again.
        shard = hashlib.sha256(story_id.encode()).hexdigest()[:2]
        stem = f"{_FOLDER}/{shard}/{story_id}-{kind}-{position}"
        return Artifact(await self._on_blobs(self._blobs.put, stem, data), kind, position, len(data))

    async def keep(self, story_id: str, kind: ArtifactKind, position: int, data: bytes) -> Artifact:
        """Stores a blob for the story, such as a checkpoint, in place of the one of the same kind and position.

        Raises:
            StoryLostError: the story is no longer this server's.
        """
        artifact = await self.save(story_id, kind, position, data)
        await self.delete(await self.write(journal.keep, story_id, artifact))
        return artifact

    async def load(self, key: str) -> bytes:
        """The blob of this key.

        Raises:
            BlobMissingError, BlobDamagedError: as ``Blobs.get``.
        """
        return await self._on_blobs(self._blobs.get, key)

    async def delete(self, keys: Collection[str]) -> None:
        """Deletes blobs, whose rows are gone already."""
        if keys:
            await self._on_blobs(self._blobs.delete, keys)

    async def blob_keys(self, at_once: int) -> AsyncIterator[Sequence[str]]:
        """Keys of all blobs of stories, with leftovers of interrupted writes, ``at_once`` at a time."""
        keys = self._blobs.list(_FOLDER)
        while some := await self._on_blobs(lambda: list(islice(keys, at_once))):
            yield some

    async def close(self) -> None:
        """Stores what is waiting to be stored, and lets go of the folder. No call may come after it."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.close()
        self._readers.shutdown()
        self._blob_threads.shutdown()
        self._database.close()
        self._folder.close()

    async def _on_blobs(
        self, call: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._blob_threads, partial(call, *args, **kwargs))
