"""A server's store in a process to be killed: works on stories for ever, and prints what was stored once it was.

``python -m tests.server.store_writer FOLDER DATABASE``. Lines: ``story ID``, ``event ID SEQUENCE KEY``, ``end ID``.
"""

import asyncio
import sys
from pathlib import Path

from storyloom_server.store import ArtifactKind, NewEvent, Store, StoreOptions, StoryState, journal, leases
from tests.server.journals import new_story

STORIES_AT_ONCE = 8
EVENTS = 6


def picture(story_id: str, sequence: int) -> bytes:
    """What the picture of an event is."""
    return f"{story_id} {sequence}".encode() * 100


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def work_on(store: Store, story_id: str, last: int) -> None:
    """Events from ``last`` on: every other one is not stored, but has a reserved number that clients see."""
    for sequence in range(last + 2, last + 2 + 2 * EVENTS, 2):
        saved = await store.save(story_id, ArtifactKind.PICTURE, sequence, picture(story_id, sequence))
        event = NewEvent(sequence, str(sequence).encode(), saved)
        await store.write(journal.append, story_id, [event], reserve=sequence + 1)
        tell("event", story_id, sequence, saved.key)
        await store.keep(story_id, ArtifactKind.CHECKPOINT, 0, b"latents" * sequence)
    await store.write(journal.finish, story_id, StoryState.FINISHED)
    tell("end", story_id)


async def make_stories(store: Store) -> None:
    while True:
        story_id = (await store.write(journal.accept, new_story())).story.id
        tell("story", story_id)
        await work_on(store, story_id, 0)


async def main(folder: str, database: str) -> None:
    store = Store.open(StoreOptions(Path(folder), database))
    adopted = await store.write(leases.adopt, limit=1000)
    await asyncio.gather(
        *(work_on(store, story.id, story.sequence_reserved) for story in adopted),
        *(make_stories(store) for _ in range(STORIES_AT_ONCE)),
    )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
