"""What the engine is told to do next, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode a story; report ``encoded``."""

    story_id: str


@dataclass(frozen=True, slots=True)
class Step:
    """Take one step with these stories together; report ``stepped`` or ``out_of_memory``."""

    story_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """Decode a preview of a story as it is now; report ``previewed``."""

    story_id: str


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode these frames (by index) of a story; report ``decoded``."""

    story_id: str
    frames: tuple[int, ...]


Work = Encode | Step | Preview | Decode
