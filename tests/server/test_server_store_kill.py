"""Kill -9 at any moment: everything that was acknowledged is there, once, with its pictures."""

import asyncio
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from storyloom_server.store import (
    RetentionPolicy,
    Store,
    StoreOptions,
    StoryState,
    Sweeper,
    journal,
    leases,
)
from tests.server.journals import blob_keys
from tests.server.store_writer import picture

# Acknowledgements after which the process is killed; the later ones come while adopted stories are worked on.
KILLS = (1, 7, 40, 90)


def test_killed_writer_loses_nothing(database_url: str, tmp_path: Path) -> None:
    told: list[list[str]] = []
    for acknowledgements in KILLS:
        told += run_and_kill(tmp_path / "state", database_url, acknowledgements)
    asyncio.run(check(tmp_path / "state", database_url, told))


def run_and_kill(folder: Path, database_url: str, acknowledgements: int) -> list[list[str]]:
    command = [sys.executable, "-m", "tests.server.store_writer", str(folder), database_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == acknowledgements:
            process.kill()
    assert process.wait() == -9, "it ended by itself"
    return [line.split() for line in lines if line.endswith("\n")]


async def check(folder: Path, database_url: str, told: list[list[str]]) -> None:
    store = Store.open(StoreOptions(folder, database_url))
    stories = {words[1] for words in told if words[0] == "story"}
    ended = {words[1] for words in told if words[0] == "end"}
    assert stories
    for story_id in stories:
        story = await store.read(journal.get, story_id, "tenant")
        events = await store.read(journal.events, story_id, limit=1000)
        numbers = [event.sequence for event in events]
        assert all(earlier < later for earlier, later in pairwise(numbers))
        assert story.sequence_reserved >= max(numbers, default=0)
        acknowledged = {int(words[2]): words[3] for words in told if words[0] == "event" and words[1] == story_id}
        stored = {event.sequence: event.picture for event in events}
        assert acknowledged.items() <= stored.items()
        for sequence, key in stored.items():
            assert key is not None
            assert await store.load(key) == picture(story_id, sequence)
        if story_id in ended:
            assert story.state is StoryState.FINISHED
    adopted = {story.id for story in await store.write(leases.adopt, limit=1000)}
    assert stories - adopted == {
        story_id for story_id in stories if not (await store.read(journal.get, story_id, "tenant")).state.is_open
    }
    await check_orphans(store)
    await store.close()


async def check_orphans(store: Store) -> None:
    """Blobs whose row was never written are collected, all others stay."""
    await Sweeper(store, RetentionPolicy(orphan_seconds=0)).sweep()
    left = set(await blob_keys(store))
    (page,) = [await store.read(journal.list_stories, "tenant", size=10_000)]
    known = set()
    for story in page.items:
        for event in await store.read(journal.events, story.id, limit=1000):
            assert event.picture is not None
            assert await store.load(event.picture)
            known.add(event.picture)
    assert known <= left
    assert all("checkpoint" in key for key in left - known)
