"""What is deleted, and what never is."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from storyloom_server.store import (
    ArtifactKind,
    NewEvent,
    RetentionPolicy,
    Store,
    StoreOptions,
    StoryState,
    Sweeper,
    SweepReport,
    cleanup,
    journal,
)
from storyloom_server.store.records import EndedStory
from storyloom_server.store.retention import Orphanage, surplus
from tests.server.journals import Server, TurnedClock, blob_keys, new_story

POLICY = RetentionPolicy(keep_seconds=1000, orphan_seconds=60)


def with_store(
    folder: Path, database: str, test: Callable[[Store, TurnedClock], Awaitable[None]], lease: float = 30.0
) -> None:
    async def run() -> None:
        clock = TurnedClock()
        store = Store.open(StoreOptions(folder / "state", database, lease_seconds=lease), clock=clock)
        await test(store, clock)
        await store.close()

    asyncio.run(run())


async def make_story(store: Store, *, size: int = 100, ends: bool = True, **fields: object) -> str:
    story_id = (await store.write(journal.accept, new_story(**fields))).story.id
    picture = await store.save(story_id, ArtifactKind.PICTURE, 0, b"x" * size)
    await store.write(journal.append, story_id, [NewEvent(1, b"", picture)])
    if ends:
        await store.write(journal.finish, story_id, StoryState.FINISHED)
    return story_id


async def stories(store: Store, tenant: str = "tenant") -> set[str]:
    return {story.id for story in (await store.read(journal.list_stories, tenant, size=100)).items}


def test_ended_stories_go_when_their_time_is_over(tmp_path: Path, database_url: str) -> None:
    async def test(store: Store, clock: TurnedClock) -> None:
        sweeper = Sweeper(store, POLICY)
        old, still_open = await make_story(store), await make_story(store, ends=False)
        short = await make_story(store, expires_at=clock.time + 10)
        long = await make_story(store, expires_at=clock.time + 2000)
        clock.time += 10
        assert (await sweeper.sweep()).stories == 1
        assert await stories(store) == {old, still_open, long}
        clock.time += 990
        young = await make_story(store)
        assert (await sweeper.sweep()).stories == 1
        assert await stories(store) == {still_open, long, young}
        assert await sweeper.sweep() == SweepReport(0, 0, 0)
        left = await blob_keys(store)
        assert len(left) == 3
        assert not any(short in key or old in key for key in left)

    with_store(tmp_path, database_url, test)


def test_open_story_is_never_forgotten(tmp_path: Path, database_url: str) -> None:
    async def test(store: Store, clock: TurnedClock) -> None:
        story_id = await make_story(store, ends=False, expires_at=clock.time - 1)
        assert await store.write(cleanup.forget, story_id) == []
        await Sweeper(store, RetentionPolicy(keep_seconds=0, tenant_bytes=0, orphan_seconds=0)).sweep()
        assert await stories(store) == {story_id}
        assert len(await blob_keys(store)) == 1

    with_store(tmp_path, database_url, test)


def test_tenant_above_its_bytes_loses_its_oldest_stories(tmp_path: Path, database_url: str) -> None:
    async def test(store: Store, clock: TurnedClock) -> None:
        ids = []
        for _ in range(5):
            ids.append(await make_story(store, request=b""))
            clock.time += 1
        other = await make_story(store, tenant="other", request=b"", size=300)
        sweeper = Sweeper(store, RetentionPolicy(tenant_bytes=350))
        assert (await sweeper.sweep()).stories == 2
        assert await stories(store) == set(ids[2:])
        assert await stories(store, "other") == {other}

    with_store(tmp_path, database_url, test)


def test_checkpoints_of_ended_stories_go_at_once(tmp_path: Path, database_url: str) -> None:
    async def test(store: Store, clock: TurnedClock) -> None:
        done, still_open = await make_story(store, ends=False), await make_story(store, ends=False)
        for story_id in (done, still_open):
            await store.keep(story_id, ArtifactKind.CHECKPOINT, 0, b"step 8")
            await store.keep(story_id, ArtifactKind.REFERENCE, 0, b"what a round shows")
            await store.keep(story_id, ArtifactKind.LATENTS, 0, b"latents")
        await store.write(journal.finish, done, StoryState.FINISHED)
        assert await Sweeper(store, POLICY).sweep() == SweepReport(0, 2, 0)
        left = await blob_keys(store)
        for kind in ("checkpoint", "reference"):
            (kept,) = [key for key in left if kind in key]
            assert still_open in kept
        assert sum("latents" in key for key in left) == 2

    with_store(tmp_path, database_url, test)


def test_blobs_without_a_row_go_after_a_while(tmp_path: Path, database_url: str) -> None:
    async def test(store: Store, clock: TurnedClock) -> None:
        story_id = await make_story(store)
        now = 0.0
        sweeper = Sweeper(store, POLICY, monotonic=lambda: now)
        orphan = await store.save(story_id, ArtifactKind.PICTURE, 1, b"never told")
        clock.time += 500  # A jump of the clock is no reason.
        assert await sweeper.sweep() == SweepReport(0, 0, 0)
        now = 59.0
        late = await store.save(story_id, ArtifactKind.PICTURE, 2, b"about to be told")
        assert await sweeper.sweep() == SweepReport(0, 0, 0)
        now = 60.0
        assert await sweeper.sweep() == SweepReport(0, 0, 1)
        left = await blob_keys(store)
        assert orphan.key not in left
        assert late.key in left
        assert len(left) == 2

    with_store(tmp_path, database_url, test)


def test_leftovers_of_interrupted_writes_go_too(tmp_path: Path) -> None:
    async def test(store: Store, clock: TurnedClock) -> None:
        partial = tmp_path / "state" / "blobs" / "stories" / "x" / "picture-0-1.ab.partial"
        partial.parent.mkdir(parents=True)
        partial.write_bytes(b"half a pict")
        await Sweeper(store, RetentionPolicy(orphan_seconds=0)).sweep()
        assert not partial.exists()

    with_store(tmp_path, f"sqlite:///{tmp_path / 'x.db'}", test)


def test_blobs_are_listed_some_at_a_time(tmp_path: Path) -> None:
    async def test(store: Store, clock: TurnedClock) -> None:
        saved = [(await store.save(f"story-{n}", ArtifactKind.PICTURE, 0, b"x")).key for n in range(7)]
        pages = [list(keys) async for keys in store.blob_keys(at_once=3)]
        assert [len(keys) for keys in pages] == [3, 3, 1]
        assert sorted(key for keys in pages for key in keys) == sorted(saved)

    with_store(tmp_path, f"sqlite:///{tmp_path / 'x.db'}", test)


def test_one_statement_is_prepared_however_many_blobs_there_are(database_url: str) -> None:
    server = Server(database_url)
    statements: set[str] = set()

    @event.listens_for(server.database.engine, "before_cursor_execute")
    def _note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("SELECT"):
            statements.add(statement)

    for count in (1, 2, 499, cleanup.MOST_KEYS):
        keys = [f"stories/a/{number}" for number in range(count)]
        assert server(cleanup.unknown, keys) == set(keys)
    assert len(statements) == 1
    server.database.close()


@pytest.mark.parametrize(("keep", "pause"), [(float("inf"), 600), (7 * 86400, 600), (180, 45), (0.1, 1)])
def test_sweeps_are_seldom_unless_stories_are_kept_for_minutes(keep: float, pause: float) -> None:
    assert RetentionPolicy(keep_seconds=keep).sweep_seconds == pause


sizes = st.lists(st.integers(0, 100), max_size=20)


@given(sizes, st.integers(0, 500), st.integers(0, 500))
def test_surplus_is_as_small_as_it_can_be(sizes: list[int], still_open: int, allowed: int) -> None:
    ended = [EndedStory(str(index), size) for index, size in enumerate(sizes)]
    used = still_open + sum(sizes)
    chosen = surplus(ended, used, allowed)
    assert list(chosen) == [story.id for story in ended[: len(chosen)]], "the oldest"
    left = used - sum(sizes[: len(chosen)])
    assert left <= allowed or len(chosen) == len(ended)
    if chosen:
        assert left + sizes[len(chosen) - 1] > allowed, "one fewer would not have done"


@given(st.lists(st.tuples(st.floats(0, 50), st.sets(st.sampled_from("abcd"))), max_size=12))
def test_orphan_is_taken_only_when_seen_for_long_enough(sweeps: list[tuple[float, set[str]]]) -> None:
    orphanage = Orphanage(60.0)
    now = 0.0
    since: dict[str, float] = {}
    for passed, orphans in sweeps:
        now += passed
        since = {key: since.get(key, now) for key in orphans}
        assert set(orphanage.take(orphans, now)) == {key for key in orphans if now - since[key] >= 60.0}
