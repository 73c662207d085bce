"""What bounds the scheduler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the scheduler.

    Args:
        max_rows: rows of a batch step; a story larger than that takes its steps alone.
        max_active_stories: stories whose states are on the device.
        max_active_rows: their rows; a larger story is active alone.
        patience: batches with stories of a tenant after which its story left out of all of them goes first.
        queue_patience: batches before a waiting story is let in whatever its rank.
        debt_seconds: see ``FairShare``.

    Raises:
        ValueError: a limit is below 1, or the active rows are fewer than those of a step.
    """

    max_rows: int
    max_active_stories: int = 64
    max_active_rows: int = 256
    patience: int = 32
    queue_patience: int = 512
    debt_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_active_stories", "patience", "queue_patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; set it to 1 or more")
        if self.max_active_rows < self.max_rows:
            raise ValueError(f"max_active_rows is {self.max_active_rows}; set it to max_rows ({self.max_rows}) or more")
