"""When a failed call is tried again: a policy, and the count of one call's tries."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from storyloom._status import Failure


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a client is with a server that does not answer, or asks to come back.

    Pauses double from `initial_backoff` to `maximum_backoff`, each shortened at random by up to a half so that clients
    do not come back all at once; a longer pause that the server asks for is kept. All tries and pauses together stay
    within the timeout of the call.

    :ivar attempts: tries of a call in all, as long as nothing came of it.
    :ivar resumes: tries in a row to take up the broken stream of a story that the server has accepted. The default
        outlasts the restart of a server.
    :ivar initial_backoff: seconds before the second try.
    :ivar maximum_backoff: seconds.
    :ivar longest_wait: seconds; a server that asks for a longer pause is not waited for.
    """

    attempts: int = 5
    resumes: int = 12
    initial_backoff: float = 0.2
    maximum_backoff: float = 5.0
    longest_wait: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.resumes < 0:
            raise ValueError("attempts must be at least 1 and resumes at least 0")
        if not 0 <= self.initial_backoff <= self.maximum_backoff or self.longest_wait < 0:
            raise ValueError("initial_backoff must lie between 0 and maximum_backoff, and longest_wait be at least 0")

    @classmethod
    def never(cls) -> Self:
        """Returns the policy that raises every failure at once."""
        return cls(attempts=1, resumes=0)


class Tries:
    """Counts the tries of one call, over all its parts, and says how long to pause before the next.

    :param timeout: seconds for everything together; None for no limit.
    :param clock: seconds, never going back.
    :param draw: returns a random number between its two arguments.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        timeout: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._timeout = timeout
        self._end: float | None = None
        self._failures = 0

    def remaining(self) -> float | None:
        """Returns the seconds left for the next try, at least a millisecond; None for no limit. The first call of this
        starts the clock.
        """
        if self._timeout is None:
            return None
        if self._end is None:
            self._end = self._clock() + self._timeout
        return max(self._end - self._clock(), 0.001)

    def progressed(self) -> None:
        """Something came of the last try, so that the count starts anew."""
        self._failures = 0

    def pause(self, failure: Failure, *, resuming: bool) -> float | None:
        """Returns the seconds to wait before the next try, or None when there is to be none.

        :param resuming: whether the call goes on with a stream, rather than starts over.
        """
        policy = self._policy
        backoff = min(policy.maximum_backoff, policy.initial_backoff * 2.0 ** min(self._failures, 60))
        self._failures += 1
        if self._failures > (policy.resumes if resuming else policy.attempts - 1):
            return None
        pause = self._draw(0.5, 1.0) * backoff
        if failure.delay is not None:
            if failure.delay > policy.longest_wait:
                return None
            pause = max(pause, failure.delay * self._draw(1.0, 1.2))
        left = None if self._timeout is None or self._end is None else self._end - self._clock()
        return None if left is not None and pause >= left else pause
