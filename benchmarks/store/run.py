"""The store against the disk it writes to: time to accept a story, events stored a second, wait of the event loop.

The baselines are an fsync of the same disk, and one commit for each event. Run it on the disk of the server::

    python -m benchmarks.store.run --folder /var/lib/storyloom [--database postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from storyloom_server.store import ArtifactKind, NewEvent, NewStory, Owner, Store, StoreOptions, journal, schema
from storyloom_server.store.database import Database, connect, system_clock

REQUEST = os.urandom(2048)
PAYLOAD = os.urandom(256)
PICTURE = os.urandom(400_000)
STORIES = 64
RESULT = Path(__file__).parents[1] / "results" / "store" / "store.json"


def new_story() -> NewStory:
    """A story with a request of a usual size."""
    digest = hashlib.sha256(REQUEST).hexdigest()
    return NewStory(uuid.uuid4().hex, "tenant", REQUEST, digest, "mini", frames=4)


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 2), "p99_ms": round(cuts[98] * 1e3, 2)}


def measure_fsync(folder: Path, count: int) -> dict[str, float]:
    """Appends of one SQLite page, each brought to the disk."""
    taken = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    return milliseconds(taken)


def measure_single_commits(folder: Path, count: int, *, synchronous: str) -> float:
    """Events stored a second with a commit for each, on SQLite, without any thread in between."""
    engine = connect(f"sqlite:///{folder / synchronous}.db")
    schema.upgrade(engine)
    database = Database(engine, Owner("a", "life"), 30.0, system_clock)
    with database.transaction() as transaction:
        raw = transaction.connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        story_id = journal.accept(transaction, new_story()).story.id
    raw.execute(f"PRAGMA synchronous = {synchronous}")  # The pool hands the same connection out again.
    began = time.perf_counter()
    for number in range(1, count + 1):
        with database.transaction() as transaction:
            journal.append(transaction, story_id, [NewEvent(number, PAYLOAD)])
    taken = time.perf_counter() - began
    database.close()
    return round(count / taken)


async def timed(taken: list[float], call: Callable[[], Awaitable[Any]]) -> Any:
    """Awaits a call and notes how long it took."""
    began = time.perf_counter()
    result = await call()
    taken.append(time.perf_counter() - began)
    return result


async def measure_lag(taken: list[float]) -> None:
    """Notes how much later than asked the event loop gets back to its work, for ever."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        taken.append(time.perf_counter() - began - 0.001)


async def measure_store(folder: Path, database: str | None, stories: int, events: int) -> dict[str, Any]:
    """``stories`` at once, each accepted and then given ``events`` events, one after the other."""
    store = Store.open(StoreOptions(folder, database))
    accepts: list[float] = []
    appends: list[float] = []
    lags: list[float] = []
    lag = asyncio.create_task(measure_lag(lags))

    async def accept(count: int) -> list[str]:
        made = [await timed(accepts, lambda: store.write(journal.accept, new_story())) for _ in range(count)]
        return [accepted.story.id for accepted in made]

    async def work(story_id: str) -> None:
        for number in range(1, events + 1):
            event = [NewEvent(number, PAYLOAD)]
            await timed(appends, lambda event=event: store.write(journal.append, story_id, event))  # type: ignore[misc]

    began = time.perf_counter()
    ids = [made[0] for made in await asyncio.gather(*(accept(events) for _ in range(stories)))]
    accept_seconds = time.perf_counter() - began
    began = time.perf_counter()
    await asyncio.gather(*map(work, ids))
    append_seconds = time.perf_counter() - began
    lag.cancel()
    await store.close()
    return {
        "accept": milliseconds(accepts) | {"per_second": round(len(accepts) / accept_seconds)},
        "append": milliseconds(appends) | {"per_second": round(len(appends) / append_seconds)},
        "event_loop_lag": milliseconds(lags),
    }


async def measure_pictures(folder: Path, count: int) -> dict[str, float]:
    """A picture of 400 kB to the disk."""
    store = Store.open(StoreOptions(folder))
    taken: list[float] = []
    for _ in range(count):
        await timed(taken, lambda: store.save("x", ArtifactKind.PICTURE, 0, PICTURE))
    await store.close()
    return milliseconds(taken)


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; the temporary one if not given")
    parser.add_argument("--database", help="also measure this empty PostgreSQL database")
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "system": platform.platform(), "load": round(os.getloadavg()[0], 1)},
            "fsync": measure_fsync(folder, options.count),
            "single_commits_per_second": {
                level: measure_single_commits(folder, options.count, synchronous=level) for level in ("FULL", "NORMAL")
            },
            "sqlite": {
                "1 story": asyncio.run(measure_store(folder / "one", None, 1, options.count)),
                f"{STORIES} stories": asyncio.run(measure_store(folder / "many", None, STORIES, options.count // 8)),
            },
            "picture_400_kB": asyncio.run(measure_pictures(folder / "pictures", options.count // 4)),
        }
        if options.database:
            result["postgresql"] = {
                "1 story": asyncio.run(measure_store(folder / "one", options.database, 1, options.count)),
                f"{STORIES} stories": asyncio.run(
                    measure_store(folder / "many", options.database, STORIES, options.count // 8)
                ),
            }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
