"""The events of one open story, in memory: written once, read by any number of readers at their own pace.

A reader keeps nothing but its place, so a slow one costs no memory. Durable events stay until the story ends; the
others (progress and previews) are bounded, oldest first, and a reader that is far behind misses those.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.story_error import StoryError

_MAX_PASSING_EVENTS = 256
_MAX_PASSING_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event. Durable frames come without their picture's bytes, which are in the store under ``picture``."""

    event: pb.GenerateStoryResponse
    durable: bool
    picture: str = ""

    @property
    def sequence(self) -> int:
        """Its place in the story."""
        return self.event.sequence


class EventLog:
    """Events in the order of their sequence numbers. Use it on one event loop."""

    def __init__(self, earlier: Iterable[LoggedEvent] = ()) -> None:
        self._events = list(earlier)
        self._passing_events = 0
        self._passing_bytes = 0
        self._closed = False
        self._error: StoryError | None = None
        self._changed = asyncio.Event()

    @property
    def last_sequence(self) -> int:
        """Number of the newest event; 0 when there is none."""
        return self._events[-1].sequence if self._events else 0

    def add(self, event: LoggedEvent) -> None:
        """Appends an event, whose sequence number is above all earlier ones."""
        if event.sequence <= self.last_sequence:
            raise ValueError(f"event {event.sequence} comes after event {self.last_sequence}")
        self._events.append(event)
        if not event.durable:
            self._passing_events += 1
            self._passing_bytes += event.event.ByteSize()
            self._forget_passing()
        self._wake()

    def close(self, error: StoryError | None = None) -> None:
        """Nothing follows: the story is done, or ended with ``error``."""
        self._closed = True
        self._error = error
        self._wake()

    async def after(self, sequence: int) -> AsyncIterator[LoggedEvent]:
        """Every event after ``sequence``, as they come, to the end of the story.

        Raises:
            StoryError: what the story ended with, after its last event.
        """
        while True:
            changed = self._changed
            place = bisect_right(self._events, sequence, key=lambda event: event.sequence)
            if place < len(self._events):
                event = self._events[place]
                sequence = event.sequence
                yield event
            elif self._closed:
                if self._error is not None:
                    # One for each reader: an error gathers what it is raised through.
                    raise replace(self._error)
                return
            else:
                await changed.wait()

    def _forget_passing(self) -> None:
        while self._passing_events > _MAX_PASSING_EVENTS or self._passing_bytes > _MAX_PASSING_BYTES:
            place = next(place for place, event in enumerate(self._events) if not event.durable)
            forgotten = self._events.pop(place)
            self._passing_events -= 1
            self._passing_bytes -= forgotten.event.ByteSize()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
