"""How the rows of a batch form groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


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

    def bounds(self, device: torch.device) -> Tensor:
        """The layout for kernels: int32 [R, 2], the first and one past the last row of each row's group.

        One tensor per layout and device is kept, so that a step copies nothing to the device.
        """
        return _bounds(self.frames, device)

    @staticmethod
    def from_bounds(bounds: Tensor) -> GroupLayout:
        """The inverse of ``bounds``. Reads the values on the host."""
        firsts = bounds[:, 0].tolist()
        return GroupLayout(tuple(firsts.count(first) for first in sorted(set(firsts))))


@lru_cache(maxsize=256)
def _bounds(frames: tuple[int, ...], device: torch.device) -> Tensor:
    ends = [
        [piece.start, piece.stop] for piece, count in zip(GroupLayout(frames).slices(), frames, strict=True)
        for _ in range(count)
    ]  # fmt: skip
    # The tensor outlives the caller's mode: one made in inference mode could never be saved for a backward pass.
    with torch.inference_mode(False):
        return torch.tensor(ends, dtype=torch.int32, device=device)
