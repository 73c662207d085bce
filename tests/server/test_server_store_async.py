"""The store on the event loop: never in its way, many writes in one commit, each with its own result."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import event, text

from storyloom_server.store import ArtifactKind, NewEvent, Store, StoreOptions, StoryState, Transaction, journal
from storyloom_server.store.errors import (
    BlobMissingError,
    NotFoundError,
    StoreSetupError,
    StoreUnavailableError,
    StoryLostError,
)
from tests.server.databases import PostgreSQL
from tests.server.journals import new_events, new_story


@asynccontextmanager
async def opened(options: StoreOptions) -> AsyncIterator[Store]:
    store = await asyncio.to_thread(Store.open, options)
    try:
        yield store
    finally:
        await store.close()


def lock(folder: Path) -> sqlite3.Connection:
    """Somebody else's transaction, which keeps every writer waiting until its rollback."""
    connection = sqlite3.connect(folder / "stories.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def count_commits(store: Store) -> list[None]:
    commits: list[None] = []
    event.listen(store._database._writing, "commit", lambda connection: commits.append(None))
    return commits


def test_what_is_stored_is_there_after_reopening(tmp_path: Path, database_url: str) -> None:
    options = StoreOptions(tmp_path / "state", database_url)

    async def run() -> None:
        async with opened(options) as store:
            story_id = (await store.write(journal.accept, new_story())).story.id
            picture = await store.save(story_id, ArtifactKind.PICTURE, 0, b"png")
            await store.write(journal.append, story_id, [NewEvent(1, b"frame", picture)], reserve=5)
            first = await store.keep(story_id, ArtifactKind.CHECKPOINT, 0, b"step 4")
            second = await store.keep(story_id, ArtifactKind.CHECKPOINT, 0, b"step 8")
            with pytest.raises(BlobMissingError):
                await store.load(first.key)
            assert await store.load(second.key) == b"step 8"
        async with opened(options) as store:
            (stored,) = await store.read(journal.events, story_id)
            assert stored.picture is not None
            assert await store.load(stored.picture) == b"png"
            with pytest.raises(NotFoundError):
                await store.read(journal.get, story_id, "other")
            with pytest.raises(StoryLostError):
                await store.write(journal.append, story_id, new_events(6))

    asyncio.run(run())


def test_writes_that_come_together_share_a_commit(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(StoreOptions(tmp_path)) as store:
            commits = count_commits(store)
            other = lock(tmp_path)
            writes = [asyncio.create_task(store.write(journal.accept, new_story())) for _ in range(64)]
            await asyncio.sleep(0.1)
            other.rollback()
            accepted = await asyncio.gather(*writes)
            assert len(commits) <= 2, "the first may have begun alone"
            page = await store.read(journal.list_stories, "tenant", size=100)
            assert {story.id for story in page.items} == {one.story.id for one in accepted}

    asyncio.run(run())


def test_failing_write_leaves_its_group_alone(tmp_path: Path) -> None:
    def half(transaction: Transaction, story_id: str) -> None:
        journal.append(transaction, story_id, new_events(1))
        raise ZeroDivisionError

    async def run() -> None:
        async with opened(StoreOptions(tmp_path)) as store:
            ids = [(await store.write(journal.accept, new_story())).story.id for _ in range(8)]
            other = lock(tmp_path)
            writes = [
                store.write(half, story_id) if index == 3 else store.write(journal.append, story_id, new_events(1))
                for index, story_id in enumerate(ids)
            ]
            together = asyncio.gather(*writes, return_exceptions=True)
            await asyncio.sleep(0.1)
            other.rollback()
            results = await together
            assert isinstance(results[3], ZeroDivisionError)
            assert [result for index, result in enumerate(results) if index != 3] == [None] * 7
            counts = [len(await store.read(journal.events, story_id)) for story_id in ids]
            assert counts == [1, 1, 1, 0, 1, 1, 1, 1]

    asyncio.run(run())


def test_waiting_for_a_lock_stops_neither_the_loop_nor_readers(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(StoreOptions(tmp_path)) as store:
            story_id = (await store.write(journal.accept, new_story())).story.id
            other = lock(tmp_path)
            write = asyncio.create_task(store.write(journal.begin, story_id))
            for _ in range(5):
                await asyncio.sleep(0.01)
                assert (await store.read(journal.get, story_id, "tenant")).state is StoryState.QUEUED
            assert not write.done()
            other.rollback()
            await write

    asyncio.run(run())


def test_given_up_write_that_has_not_begun_is_not_made(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(StoreOptions(tmp_path)) as store:
            other = lock(tmp_path)
            first = asyncio.create_task(store.write(journal.accept, new_story()))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(store.write(journal.accept, new_story()))
            await asyncio.sleep(0)
            second.cancel()
            other.rollback()
            accepted = await first
            page = await store.read(journal.list_stories, "tenant", size=10)
            assert [story.id for story in page.items] == [accepted.story.id]

    asyncio.run(run())


def test_closing_stores_what_waits_and_refuses_the_rest(tmp_path: Path) -> None:
    async def run() -> None:
        store = Store.open(StoreOptions(tmp_path))
        writes = [asyncio.create_task(store.write(journal.accept, new_story())) for _ in range(20)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*writes)
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.write(journal.accept, new_story())
        async with opened(StoreOptions(tmp_path)) as again:
            assert len((await again.read(journal.list_stories, "tenant", size=100)).items) == 20

    asyncio.run(run())


def test_folder_belongs_to_one_server(tmp_path: Path) -> None:
    store = Store.open(StoreOptions(tmp_path))
    with pytest.raises(StoreSetupError, match="another server uses the state folder"):
        Store.open(StoreOptions(tmp_path))
    replica, life = store.owner.replica, store.owner.life
    asyncio.run(store.close())
    again = Store.open(StoreOptions(tmp_path))
    assert again.owner.replica == replica
    assert again.owner.life != life
    asyncio.run(again.close())


def test_failed_opening_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(StoreSetupError, match="use sqlite or postgresql"):
        Store.open(StoreOptions(tmp_path, database="mysql://host/x"))
    with pytest.raises(StoreSetupError, match="nosuch"):
        Store.open(StoreOptions(tmp_path, blobs="nosuch://x"))
    asyncio.run(Store.open(StoreOptions(tmp_path)).close())


def test_unusable_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreSetupError, match="choose another one"):
        Store.open(StoreOptions(tmp_path / "file"))


def test_times_are_the_databases_where_servers_share_it(tmp_path: Path, postgresql_server: PostgreSQL) -> None:
    """The clock of a server that runs ahead takes no story away from another."""

    async def run() -> None:
        async with opened(StoreOptions(tmp_path, postgresql_server.new_database())) as store:
            before = await store.read(database_time)
            story = (await store.write(journal.accept, new_story())).story
            after = await store.read(database_time)
            assert before <= story.created_at <= after
            assert story.lease_until == story.created_at + StoreOptions(tmp_path).lease_seconds

    def database_time(transaction: Transaction) -> float:
        return float(transaction.connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    asyncio.run(run())
