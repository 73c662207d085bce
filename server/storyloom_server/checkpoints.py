"""The newest checkpoint of each window of an open story, from which it goes on when its engine or server was lost."""

from __future__ import annotations

import logging

from storyloom_server import messages
from storyloom_server.logs import fields
from storyloom_server.shelf import Shelf
from storyloom_server.store import ArtifactKind
from storyloom_server.store.errors import BlobDamagedError, BlobMissingError, NotFoundError

log = logging.getLogger("storyloom.story")

_HEADER = 4
"""Bytes in front of a checkpoint: its steps, and above them the number of its round."""
_ROUND_SHIFT = 16


class Checkpoints:
    """Of one story. Windows are known by their first frames."""

    def __init__(self, story_id: str, shelf: Shelf) -> None:
        self._story_id = story_id
        self._shelf = shelf

    async def keep(self, first_frame: int, number: int, made: messages.Checkpoint) -> None:
        """Stores a checkpoint of a window in a round, in place of the one before it."""
        header = number << _ROUND_SHIFT | made.step
        data = header.to_bytes(_HEADER, "little") + made.data
        await self._shelf.keep(ArtifactKind.CHECKPOINT, first_frame, data)

    async def last(self, first_frame: int, number: int) -> tuple[bytes | None, int]:
        """The newest checkpoint of a window in a round and the steps in it; None and 0 when there is none."""
        try:
            data = await self._shelf.load(ArtifactKind.CHECKPOINT, first_frame)
        except NotFoundError:
            return None, 0
        except (BlobMissingError, BlobDamagedError) as error:
            log.error("a checkpoint is of no use", extra=fields(story_id=self._story_id, why=error))
            return None, 0
        header = int.from_bytes(data[:_HEADER], "little")
        if header >> _ROUND_SHIFT != number:
            return None, 0
        return data[_HEADER:], header & ((1 << _ROUND_SHIFT) - 1)
