"""Full disks, locks and broken connections: a clear error, nothing half stored, and on as before afterwards."""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import event, text

from storyloom_server.store import ArtifactKind, Owner, Store, StoreOptions, Transaction, journal, schema
from storyloom_server.store.database import Database, connect, system_clock
from storyloom_server.store.errors import StorageFullError, StoreBusyError, StoreUnavailableError
from storyloom_server.store.writer import GroupWriter
from tests.server.databases import PostgreSQL
from tests.server.journals import Server, blob_keys, new_events, new_story


def hasty(url: str) -> Database:
    """A database whose locks nobody waits for long."""
    return Database(connect(url, busy_seconds=0.2), Owner("hasty", "life"), 30.0, system_clock)


def test_full_database_stores_all_or_nothing(tmp_path: Path) -> None:
    server = Server(f"sqlite:///{tmp_path / 'x.db'}")
    engine = server.database.engine

    def limit(pages: int) -> None:
        engine.dispose()
        event.listen(engine, "connect", lambda raw, record: raw.execute(f"PRAGMA max_page_count = {pages}"))

    accepted = [server(journal.accept, new_story()).story.id]

    def fill() -> None:
        while True:
            accepted.append(server(journal.accept, new_story(request=b"x" * 10_000)).story.id)

    limit(60)
    with pytest.raises(StorageFullError, match="free some space"):
        fill()
    assert len(accepted) > 1
    page = server(journal.list_stories, "tenant", size=200)
    assert {story.id for story in page.items} == set(accepted)
    limit(10_000)
    server(journal.append, accepted[0], new_events(1))
    server(journal.accept, new_story(request=b"x" * 10_000))
    server.database.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system; run this as root, in a container for example")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(filler: Path) -> None:
    """Takes all space there is."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


async def for_ever(call: Callable[[], Awaitable[None]]) -> None:
    while True:
        await call()


def test_store_on_a_full_disk_loses_nothing_and_recovers(small_disk: Path) -> None:
    async def run() -> None:
        store = Store.open(StoreOptions(small_disk / "state"))
        accepted, saved = [], []

        async def accept() -> None:
            accepted.append((await store.write(journal.accept, new_story(request=b"x" * 5000))).story.id)

        async def save() -> None:
            saved.append((await store.save("x", ArtifactKind.PICTURE, 0, b"p" * 20_000)).key)

        filler = small_disk / "filler"
        fill(filler)
        for call in (save, accept):
            with pytest.raises(StorageFullError, match="free some space"):
                await for_ever(call)
        filler.unlink()
        await accept()
        await save()
        await store.close()
        again = Store.open(StoreOptions(small_disk / "state"))
        page = await again.read(journal.list_stories, "tenant", size=1000)
        assert {story.id for story in page.items} == set(accepted)
        assert set(await blob_keys(again)) == set(saved)
        await again.close()

    asyncio.run(run())


def test_database_locked_for_too_long_is_busy(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    schema.upgrade(connect(url))
    database = hasty(url)
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError, match="try again"), database.transaction() as transaction:
        journal.accept(transaction, new_story())
    # A group finds out together, not one after the other.
    writer = GroupWriter(database)
    futures = [writer.submit(lambda to: journal.accept(to, new_story())) for _ in range(50)]
    for future in futures:
        assert isinstance(future.exception(timeout=5), StoreBusyError)
    other.execute("ROLLBACK")
    assert not writer.submit(lambda to: journal.accept(to, new_story())).result().existing
    writer.close()
    database.close()


def test_postgresql_lock_held_for_too_long_is_busy(postgresql_server: PostgreSQL) -> None:
    url = postgresql_server.new_database()
    server, database = Server(url), hasty(url)
    with server.database.transaction() as holder:
        holder.connection.execute(text("LOCK TABLE story"))
        with pytest.raises(StoreBusyError, match="try again"), database.transaction() as transaction:
            journal.accept(transaction, new_story())
    server.database.close()
    database.close()


def terminate_others(server: Server) -> None:
    with server.database.transaction() as transaction:
        transaction.connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_broken_connection_is_told_and_made_anew(postgresql_server: PostgreSQL) -> None:
    url = postgresql_server.new_database()
    server, killer = Server(url), Server(url)
    story_id = server(journal.accept, new_story()).story.id

    def broken(transaction: Transaction) -> None:
        journal.append(transaction, story_id, new_events(1))
        terminate_others(killer)
        journal.append(transaction, story_id, new_events(2))

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        server(broken)
    assert server(journal.events, story_id) == []
    server(journal.append, story_id, new_events(1))
    server.database.close()
    killer.database.close()


def test_group_survives_a_connection_that_broke_while_idle(postgresql_server: PostgreSQL) -> None:
    url = postgresql_server.new_database()
    server, killer = Server(url), Server(url)
    story_id = server(journal.accept, new_story()).story.id
    writer = GroupWriter(server.database)
    terminate_others(killer)
    outcomes: list[Any] = []
    for number in range(1, 6):
        append = writer.submit(lambda to, number=number: journal.append(to, story_id, new_events(number)))
        outcomes.append(append.exception())
    assert outcomes == [None] * 5, "a broken connection of the pool is no reason to fail"
    writer.close()
    server.database.close()
    killer.database.close()


def test_deadlock_ends_well(postgresql_server: PostgreSQL) -> None:
    """Of two transactions that wait for each other, one is told to try again, and then succeeds."""
    server = Server(postgresql_server.new_database())
    ids = [server(journal.accept, new_story()).story.id for _ in range(2)]
    both_have_one = Barrier(2)

    def cancel(transaction: Transaction, first: str, second: str, barrier: Barrier | None) -> None:
        journal.request_cancel(transaction, first, "tenant")
        if barrier is not None:
            barrier.wait(60)
        journal.request_cancel(transaction, second, "tenant")

    with ThreadPoolExecutor(2) as threads:
        orders = [(ids[0], ids[1]), (ids[1], ids[0])]
        futures = [threads.submit(server, cancel, *order, both_have_one) for order in orders]
        outcomes = [future.exception() for future in futures]
    assert [type(outcome) for outcome in outcomes].count(type(None)) == 1
    (failed,) = [index for index, outcome in enumerate(outcomes) if outcome is not None]
    assert isinstance(outcomes[failed], StoreBusyError)
    server(cancel, *orders[failed], None)
    server.database.close()
