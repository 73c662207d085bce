"""Whatever the order of writing and reading: every reader sees each durable event once and in order, to the end."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server import errors, event_log
from storyloom_server.event_log import EventLog, LoggedEvent
from storyloom_server.story_error import StoryError

FEW, SMALL = 3, 400
"""Passing events and their bytes that a log keeps in these tests, so that readers fall behind often."""

adds = st.tuples(st.just("add"), st.booleans(), st.integers(0, 200))
reads = st.tuples(st.just("read"), st.integers(0, 4), st.integers(1, 5))
actions = st.lists(adds | reads | st.tuples(st.just("wait")), max_size=60)


@pytest.fixture(autouse=True, scope="module")
def _small_log() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_log, "_MAX_PASSING_EVENTS", FEW)
        patch.setattr(event_log, "_MAX_PASSING_BYTES", SMALL)
        yield


def event(sequence: int, *, durable: bool, size: int = 0) -> LoggedEvent:
    """An event of about ``size`` bytes."""
    return LoggedEvent(pb.GenerateStoryResponse(story_id="x" * size, sequence=sequence), durable)


class Reader:
    """Reads a log a few events at a time; what it would wait for, it asks for again later."""

    def __init__(self, log: EventLog, start: int) -> None:
        self.start = start
        self.seen: list[int] = []
        self.error: StoryError | None = None
        self.ended = False
        self._events: AsyncIterator[LoggedEvent] = log.after(start)
        self._pending: asyncio.Future[LoggedEvent] | None = None

    async def read(self, count: int) -> None:
        """Takes as many events as there are at once."""
        for _ in range(count):
            if self.ended:
                return
            if self._pending is None:
                self._pending = asyncio.ensure_future(anext(self._events))  # type: ignore[arg-type]
            await asyncio.wait([self._pending], timeout=0)
            for _ in range(3):
                await asyncio.sleep(0)
            if not self._pending.done():
                return
            pending, self._pending = self._pending, None
            try:
                self.seen.append(pending.result().sequence)
            except StopAsyncIteration:
                self.ended = True
            except StoryError as error:
                self.ended, self.error = True, error


@settings(deadline=None, max_examples=300)
@given(
    actions=actions,
    starts=st.lists(st.integers(0, 40), min_size=5, max_size=5),
    gaps=st.lists(st.integers(1, 3), min_size=60, max_size=60),
    stored=st.integers(0, 4),
    failed=st.booleans(),
)
def test_readers_miss_and_repeat_nothing_that_lasts(
    actions: list[tuple[Any, ...]], starts: list[int], gaps: list[int], stored: int, failed: bool
) -> None:
    error = errors.story_cancelled() if failed else None

    async def run() -> None:
        written = [event(2 * number + 1, durable=True) for number in range(stored)]
        log = EventLog(written)
        readers = [Reader(log, start) for start in starts]
        for action, gap in zip(actions, gaps, strict=False):
            match action:
                case ("add", durable, size):
                    added = event(log.last_sequence + gap, durable=durable, size=size)
                    written.append(added)
                    log.add(added)
                case ("read", who, count):
                    await readers[who].read(count)
                case _:
                    await asyncio.sleep(0)
            assert log.last_sequence == (written[-1].sequence if written else 0)
        log.close(error)
        late = Reader(log, 0)
        for reader in (*readers, late):
            await reader.read(1000)
            assert (reader.ended, reader.error and reader.error.status()) == (True, error and error.status())
            # Its own, so that nothing that one reader's has gone through stays with the others.
            assert reader.error is not error or error is None
            check(reader, written)
        passing = [one for one in written if not one.durable]
        # Late readers get of the passing events what fits.
        kept = [number for number in late.seen if number in {one.sequence for one in passing}]
        assert len(kept) <= FEW
        assert sum(one.event.ByteSize() for one in passing if one.sequence in kept) <= SMALL
        assert kept == [one.sequence for one in passing][len(passing) - len(kept) :]

    asyncio.run(run())


def check(reader: Reader, written: list[LoggedEvent]) -> None:
    """What this reader saw is right, whenever it read."""
    assert reader.seen == sorted(set(reader.seen))
    after = [one for one in written if one.sequence > reader.start]
    assert set(reader.seen) <= {one.sequence for one in after}
    assert {one.sequence for one in after if one.durable} <= set(reader.seen)


@settings(deadline=None, max_examples=100)
@given(durable=st.lists(st.booleans(), min_size=1, max_size=30))
def test_who_keeps_up_misses_nothing_at_all(durable: list[bool]) -> None:
    async def run() -> None:
        log = EventLog()
        readers = [Reader(log, 0) for _ in range(3)]
        for number, lasting in enumerate(durable, 1):
            log.add(event(number, durable=lasting))
            for reader in readers:
                await reader.read(2)
        log.close()
        for reader in readers:
            await reader.read(1)
            assert reader.seen == list(range(1, len(durable) + 1))
            assert reader.ended

    asyncio.run(run())


def test_those_who_wait_are_woken_by_events_and_by_the_end() -> None:
    async def read(log: EventLog) -> list[int]:
        return [one.sequence async for one in log.after(0)]

    async def run() -> None:
        log = EventLog()
        waiting = [asyncio.create_task(read(log)) for _ in range(10)]
        for number in range(1, 4):
            await asyncio.sleep(0)
            log.add(event(number, durable=False))
        await asyncio.sleep(0)
        log.close(errors.draining())
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, StoryError)
            assert result.reason == "DRAINING"
        # Also those that come after the end.
        with pytest.raises(StoryError):
            await read(log)

    asyncio.run(run())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_events_must_come_in_order(number: int) -> None:
    log = EventLog([event(2, durable=True)])
    with pytest.raises(ValueError, match=f"event {number} comes after event 2"):
        log.add(event(number, durable=True))
    assert log.last_sequence == 2


def test_one_huge_preview_is_let_go_of() -> None:
    async def run() -> list[int]:
        log = EventLog()
        log.add(event(1, durable=True))
        log.add(event(2, durable=False, size=SMALL + 1))
        log.add(event(3, durable=False))
        log.close()
        return [one.sequence async for one in log.after(0)]

    assert asyncio.run(run()) == [1, 3]


def test_readers_that_leave_leave_nothing_behind() -> None:
    async def run() -> None:
        log = EventLog()
        log.add(event(1, durable=True))
        for _ in range(20):
            async with aclosing(log.after(0)) as reader:  # type: ignore[type-var]
                assert (await anext(reader)).sequence == 1
                waiting = asyncio.ensure_future(anext(reader))
                await asyncio.sleep(0)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
        gone = weakref.ref(log)
        del log, reader, waiting
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None

    asyncio.run(run())
