"""How the rows of a batch form groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class GroupLayout:
    """Rows of each group, which are contiguous: ``GroupLayout((3, 2))`` says rows 0 to 2 and rows 3 to 4.

    Raises:
        ValueError: there is no group, or a group has no row.
    """

    frames: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.frames or min(self.frames) < 1:
            raise ValueError(f"every group needs at least one row, and there must be a group; got {self.frames}")

    @cached_property
    def rows(self) -> int:
        """Rows of the batch."""
        return sum(self.frames)

    def slices(self) -> Iterator[slice]:
        """The rows of each group, in order."""
        start = 0
        for frames in self.frames:
            yield slice(start, start + frames)
            start += frames
