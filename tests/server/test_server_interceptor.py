"""Every call is counted once, with the code that it ended with: a real server, real calls, every way to end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from storyloom_server import errors
from storyloom_server.interceptor import CallMetrics
from storyloom_server.metrics import Metrics
from storyloom_server.story_error import abort

SERVICE = "test.Calls"
SECONDS = 30.0
_Context = grpc.aio.ServicerContext[bytes, bytes]


class Calls:
    """A method for each kind; the request tells it how to end."""

    def __init__(self) -> None:
        self.written = 0
        self.entered = asyncio.Event()

    async def unary(self, request: bytes, context: _Context) -> bytes:
        return await self._end(request, context)

    async def generated(self, request: bytes, context: _Context) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self._end(request, context)

    async def written_stream(self, request: bytes, context: _Context) -> None:
        await context.write(b"first")
        while request == b"flood":
            await context.write(bytes(100_000))
            self.written += 1
        await context.write(await self._end(request, context))

    async def collected(self, requests: AsyncIterator[bytes], context: _Context) -> bytes:
        return await self._end(b"".join([request async for request in requests]), context)

    async def echoed(self, requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self._end(request, context)

    async def _end(self, request: bytes, context: _Context) -> bytes:
        self.entered.set()
        match request:
            case b"abort":
                await abort(context, errors.queue_full(3, 5.0))
            case b"raise":
                raise ValueError("on purpose")
            case b"set":
                context.set_code(grpc.StatusCode.NOT_FOUND)
            case b"wait":
                await asyncio.sleep(10 * SECONDS)
        return b"last"

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Generated": grpc.unary_stream_rpc_method_handler(self.generated),
                "Written": grpc.unary_stream_rpc_method_handler(self.written_stream),
                "Collected": grpc.stream_unary_rpc_method_handler(self.collected),
                "Echoed": grpc.stream_stream_rpc_method_handler(self.echoed),
            },
        )


class Bench:
    """A server with the interceptor, and a channel to it."""

    def __init__(self, calls: Calls, metrics: Metrics, channel: Any) -> None:
        self.calls = calls
        self.metrics = metrics
        self.channel = channel

    def call(self, method: str, request: bytes, timeout: float | None = SECONDS) -> Any:
        path = f"/{SERVICE}/{method}"
        if method in ("Collected", "Echoed"):
            kind = self.channel.stream_unary if method == "Collected" else self.channel.stream_stream
            return kind(path)(iter([request]), timeout=timeout)
        kind = self.channel.unary_unary if method == "Unary" else self.channel.unary_stream
        return kind(path)(request, timeout=timeout)

    async def end(self, call: Any) -> grpc.StatusCode:
        """Reads a call to its end."""
        try:
            if hasattr(call, "__aiter__"):
                async for _ in call:
                    pass
            else:
                await call
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        code: grpc.StatusCode = await call.code()
        return code

    def counts(self) -> dict[tuple[str, str], float]:
        families = text_string_to_metric_families(self.metrics.exposition().decode())
        requests = next(family for family in families if family.name == "storyloom_requests")
        return {
            (sample.labels["method"], sample.labels["code"]): sample.value
            for sample in requests.samples
            if sample.name.endswith("_total")
        }

    async def counted(self, expected: dict[tuple[str, str], float]) -> None:
        """Waits until the counts are so: the server learns of a cancelled call a little later than the client."""
        async with asyncio.timeout(SECONDS):
            while sum(self.counts().values()) < sum(expected.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # A second count of the same call would come now.
        assert self.counts() == expected


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    calls, metrics = Calls(), Metrics("1", [])
    server = grpc.aio.server(interceptors=[CallMetrics(metrics)])
    server.add_generic_rpc_handlers((calls.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Bench(calls, metrics, channel)
    finally:
        await server.stop(0)


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def body() -> None:
        async with bench() as made:
            await test(made)

    asyncio.run(body())


KINDS = ["Unary", "Generated", "Written", "Collected", "Echoed"]


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(
    ("request_", "code"),
    [(b"ok", "OK"), (b"abort", "RESOURCE_EXHAUSTED"), (b"raise", "UNKNOWN"), (b"set", "NOT_FOUND")],
)
def test_calls_that_the_handler_ends(method: str, request_: bytes, code: str) -> None:
    async def test(bench: Bench) -> None:
        assert (await bench.end(bench.call(method, request_))).name == code
        await bench.counted({(f"{SERVICE}/{method}", code): 1})

    run(test)


@pytest.mark.parametrize("method", KINDS)
def test_calls_that_the_client_cancels(method: str) -> None:
    async def test(bench: Bench) -> None:
        call = bench.call(method, b"wait")
        reading = asyncio.create_task(bench.end(call))
        await asyncio.wait_for(bench.calls.entered.wait(), SECONDS)
        call.cancel()
        assert await reading is grpc.StatusCode.CANCELLED
        await bench.counted({(f"{SERVICE}/{method}", "CANCELLED"): 1})

    run(test)


@pytest.mark.parametrize("method", KINDS)
def test_calls_whose_time_is_over(method: str) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.end(bench.call(method, b"wait", timeout=0.5)) is grpc.StatusCode.DEADLINE_EXCEEDED
        await bench.counted({(f"{SERVICE}/{method}", "DEADLINE_EXCEEDED"): 1})

    run(test)


def test_methods_that_do_not_exist_share_one_label() -> None:
    async def test(bench: Bench) -> None:
        for method in ("One", "Two"):
            call = bench.channel.unary_unary(f"/{SERVICE}/{method}")(b"", timeout=SECONDS)
            assert await bench.end(call) is grpc.StatusCode.UNIMPLEMENTED
        await bench.counted({("unknown", "UNIMPLEMENTED"): 2})

    run(test)


def test_a_slow_reader_still_holds_the_handler_back() -> None:
    async def test(bench: Bench) -> None:
        call = bench.call("Written", b"flood")
        assert await call.read() == b"first"
        before = -1
        while bench.calls.written != before:  # It stands still once the windows are full.
            before = bench.calls.written
            await asyncio.sleep(0.5)
        assert before < 200
        call.cancel()
        await bench.counted({(f"{SERVICE}/Written", "CANCELLED"): 1})

    run(test)


def test_calls_are_timed() -> None:
    async def test(bench: Bench) -> None:
        await bench.end(bench.call("Generated", b"wait", timeout=0.5))
        await bench.counted({(f"{SERVICE}/Generated", "DEADLINE_EXCEEDED"): 1})
        name = "storyloom_request_duration_seconds_sum"
        seconds = bench.metrics.registry.get_sample_value(name, {"method": f"{SERVICE}/Generated"})
        assert seconds is not None
        assert 0.3 < seconds < SECONDS

    run(test)
