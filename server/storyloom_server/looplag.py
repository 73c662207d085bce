"""Watches how late the event loop comes to its timers: the time for which something blocked it."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

_INTERVAL_SECONDS = 0.05
_WINDOW = 1200  # A minute of intervals.


class LoopLag:
    """Measures from ``start`` to ``stop``, on the loop that runs then.

    Args:
        observe: gets every lag, in seconds.
        interval_seconds: between two measurements.
    """

    def __init__(
        self, observe: Callable[[float], None] = lambda _: None, interval_seconds: float = _INTERVAL_SECONDS
    ) -> None:
        self._observe = observe
        self._interval = interval_seconds
        self._lags: deque[float] = deque(maxlen=_WINDOW)
        self._last_beat = math.inf
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to measure."""
        self._last_beat = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._measure(), name="loop-lag")

    async def stop(self) -> None:
        """Ends it. What was measured stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def quantile(self, share: float) -> float:
        """Seconds that ``share`` of the last minute's lags do not exceed; 0 before the first one."""
        ordered = sorted(self._lags)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0

    def silence(self) -> float:
        """Seconds since the loop last ran a timer; from any thread. A large value: it is stuck."""
        return max(0.0, time.monotonic() - self._last_beat)

    async def _measure(self) -> None:
        while True:
            due = time.monotonic() + self._interval
            await asyncio.sleep(self._interval)
            self._last_beat = time.monotonic()
            lag = max(0.0, self._last_beat - due)
            self._lags.append(lag)
            self._observe(lag)
