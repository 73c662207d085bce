"""Which batches fit the device's memory: learned from measured peaks and from running out.

The predicted peak of a batch is ``weights + state * A + activation * R + cross * X``: ``A`` the row-megapixels of all
active stories (their states stay on the device), ``R`` those of the batch, ``X`` its cross-frame term (see ``cost``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from storyloom_server.scheduler.regression import NonNegativeRegression
from storyloom_server.scheduler.stories import Load

_GIB = 2**30
_USABLE = 0.92
"""Share of the device's memory that a predicted peak may take: allocators fragment, and predictions err."""

_BACK_OFF = 0.9
"""After running out of memory the cap is this share of the load that failed."""

_RECOVERY_BATCHES = 2000
_RECOVERY = 1.05
"""After so many batches without a failure the cap rises by this factor: what failed once may have been bad luck."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a batch of several stories may ask for beside given active stories.

    ``cap`` bounds its row-megapixels, ``usable`` the bytes of its peak, of which ``taken`` are there whatever it is.
    """

    cap: float
    usable: float
    taken: float = 0.0
    per_row_megapixel: float = 0.0
    per_cross: float = 0.0

    def fits(self, row_megapixels: float, cross: float) -> bool:
        """True when a step of such a load should succeed."""
        peak = self.taken + self.per_row_megapixel * row_megapixels + self.per_cross * cross
        return row_megapixels <= self.cap and peak <= self.usable


class MemoryModel:
    """Learns what fits. One story alone always does as far as this model is concerned: whether it can run is tried.

    Args:
        total_bytes: memory of the device; None where it is not the limit (on a CPU): then only failures cap the load.
    """

    def __init__(self, total_bytes: int | None = None) -> None:
        self._usable = math.inf if total_bytes is None else total_bytes * _USABLE
        self._peak = NonNegativeRegression((2 * _GIB, 0.02 * _GIB, 1.0 * _GIB, 0.01 * _GIB))
        self._cap = math.inf
        self._batches_since_failure = 0

    @property
    def cap(self) -> float:
        """Row-megapixels that a batch of several stories may have; infinite until one failed."""
        return self._cap

    def room(self, active: Load) -> Room:
        """What fits while ``active`` stories (the batch's among them) hold their states."""
        if math.isinf(self._usable) or not self._peak.count:
            return Room(self._cap, math.inf)
        weights, state, activation, cross = self._peak.coefficients
        return Room(self._cap, self._usable, weights + state * active.row_megapixels, activation, cross)

    def has_room(self, largest: Load, active: Load) -> bool:
        """True when so many stories can be active at once with the ``largest`` of them taking a step."""
        if active.stories <= 1:
            return True
        return replace(self.room(active), cap=math.inf).fits(largest.row_megapixels, largest.cross)

    def largest_story(self) -> float | None:
        """Row-megapixels of the largest story that should fit with the device to itself; None while that is not known.

        The cross-frame term is left out, which errs towards trying.
        """
        weights, state, activation, _ = self._peak.coefficients
        if not self._peak.count or math.isinf(self._usable) or state + activation <= 0:
            return None
        return max((self._usable - weights) / (state + activation), 0.0)

    def observe_peak(self, batch: Load, active: Load, peak_bytes: int | None) -> None:
        """A step of ``batch`` succeeded, with this peak where it was measured."""
        self._batches_since_failure += 1
        if self._batches_since_failure >= _RECOVERY_BATCHES:
            self._cap *= _RECOVERY
            self._batches_since_failure = 0
        if peak_bytes is not None:
            self._peak.observe(_features(batch, active), peak_bytes)

    def out_of_memory(self, batch: Load) -> bool:
        """A step of ``batch`` ran out of memory: smaller batches from now on.

        Returns:
            False when it was one story alone, for which no smaller batch exists.
        """
        self._batches_since_failure = 0
        if batch.stories <= 1:
            return False
        self._cap = min(self._cap, _BACK_OFF * batch.row_megapixels)
        return True


def _features(batch: Load, active: Load) -> tuple[float, ...]:
    return (1.0, active.row_megapixels, batch.row_megapixels, batch.cross)
