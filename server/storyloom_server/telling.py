"""How a story's events get their numbers and reach its readers: those that last are stored before anybody hears."""

from __future__ import annotations

from typing import Any

from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.accepted_story import AcceptedStory
from storyloom_server.event_log import EventLog, LoggedEvent
from storyloom_server.shelf import Shelf
from storyloom_server.store import Artifact, NewEvent, StoryState, journal

# Event numbers are reserved in blocks, so that progress costs no write.
_RESERVE = 256


class Teller:
    """Tells of one story. Readers look at its ``log``."""

    def __init__(self, story: AcceptedStory, shelf: Shelf) -> None:
        self.log = EventLog(story.events)
        self._story_id = story.story_id
        self._shelf = shelf
        self._sequence = max(story.sequence_reserved if story.events else 0, self.log.last_sequence)
        self._reserved = story.sequence_reserved

    async def durable(self, *, picture: Artifact | None = None, **event: Any) -> None:
        """An event that every reader gets, also after a restart."""
        message = self._event(**event)
        stored = NewEvent(message.sequence, message.SerializeToString(), picture)
        await self._shelf.write(journal.append, self._story_id, [stored])
        self.log.add(LoggedEvent(message, durable=True, picture=picture.key if picture else ""))

    async def passing(self, **event: Any) -> None:
        """An event for those who read along."""
        if self._sequence >= self._reserved:
            upto = self._sequence + _RESERVE
            await self._shelf.write(journal.reserve, self._story_id, upto)
            self._reserved = upto
        self.log.add(LoggedEvent(self._event(**event), durable=False))

    async def last(self, **event: Any) -> None:
        """The last event of a story, which is finished with it."""
        message = self._event(**event)
        stored = NewEvent(message.sequence, message.SerializeToString())
        await self._shelf.write(journal.finish, self._story_id, StoryState.FINISHED, events=[stored])
        self.log.add(LoggedEvent(message, durable=True))
        self.log.close()

    def _event(self, **event: Any) -> pb.GenerateStoryResponse:
        self._sequence += 1
        return pb.GenerateStoryResponse(story_id=self._story_id, sequence=self._sequence, **event)
