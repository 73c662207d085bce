"""The lag of the event loop, as seen by a loop that is blocked on purpose."""

import asyncio
import time

from storyloom_server.looplag import LoopLag


def test_a_blocked_loop_is_seen() -> None:
    observed: list[float] = []

    async def body() -> LoopLag:
        lag = LoopLag(observed.append, interval_seconds=0.01)
        assert lag.quantile(0.99) == 0
        lag.start()
        await asyncio.sleep(0.1)
        time.sleep(0.4)  # noqa: ASYNC251 - it is what is to be seen
        assert lag.silence() >= 0.35
        await asyncio.sleep(0.1)
        await lag.stop()
        return lag

    lag = asyncio.run(body())
    assert max(observed) >= 0.35
    assert lag.quantile(1.0) == max(observed)
    assert lag.quantile(0.5) < 0.35


def test_stopping_twice_or_before_the_start_is_fine() -> None:
    async def body() -> None:
        lag = LoopLag()
        await lag.stop()
        lag.start()
        await lag.stop()
        await lag.stop()

    asyncio.run(body())
