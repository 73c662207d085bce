"""Token buckets: so many a minute, a few at once. Pure, over a clock that is given."""

from collections.abc import Callable


class TokenBucket:
    """Refills steadily up to ``burst``; each taking needs one.

    Args:
        per_second: how many come back each second.
        burst: how many there are at most, and at the start; at least 1.
        clock: monotonic seconds.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = max(1.0, burst)
        self._clock = clock
        self._left = self._burst
        self._updated = clock()

    def take(self) -> float:
        """Takes one and returns 0, or takes none and returns the seconds until there is one."""
        now = self._clock()
        self._left = min(self._burst, self._left + max(0.0, now - self._updated) * self._per_second)
        self._updated = now
        if self._left >= 1.0 - _ROUNDING:
            self._left = max(0.0, self._left - 1.0)
            return 0.0
        return (1.0 - self._left) / self._per_second


# A caller that waits as long as it was told must not miss by a rounding error.
_ROUNDING = 1e-9
