"""When a job's next checkpoint is due."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CheckpointPace:
    """At least so many steps and so many seconds lie between two checkpoints of a job, or its start and the first.

    Pure, over a clock that is given.

    Args:
        steps: 0 for no checkpoints.
        seconds: 0 to count steps alone.
        last_step, last_time: of the start, then of the last checkpoint.
    """

    steps: int
    seconds: float
    last_step: int
    last_time: float

    def due(self, step: int, now: float) -> bool:
        """Whether a checkpoint is to be made after this step; if so, it counts as made."""
        if not self.steps or step - self.last_step < self.steps or now - self.last_time < self.seconds:
            return False
        self.last_step, self.last_time = step, now
        return True
