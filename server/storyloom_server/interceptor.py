"""Counts and times every call, by method and by the code that it ends with.

The wrapped handlers write through the same context and are the same kind of function as the original ones, so that a
slow reader holds them back as before. Calls of methods that do not exist are counted under "unknown", since their names
come from outside. Only ``async`` handlers are counted: the server has no others.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from storyloom_server.metrics import Metrics

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_UNKNOWN = "unknown"
# The client's clock ends a call at its deadline a little before the server's clock does.
_DEADLINE_SLACK_SECONDS = 0.1


class CallMetrics(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # Generic in the stubs alone.
    """Interceptor for ``grpc.aio.server(interceptors=[...])``; put it first, so that it sees the others' refusals."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Replaces the call's handler by one that is counted."""
        handler: _Handler | None = await continuation(handler_call_details)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(self._counted(_UNKNOWN, _no_such_method))
        method = handler_call_details.method.lstrip("/")
        kind, behaviour = _behaviour(handler)
        if not (inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)):
            return handler
        return kind(
            self._counted(method, behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _counted(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):

            async def generate(request: Any, context: _Context) -> AsyncIterator[Any]:
                with self._counting(method, context):
                    async for response in behaviour(request, context):
                        yield response

            return generate

        async def respond(request: Any, context: _Context) -> Any:
            with self._counting(method, context):
                return await behaviour(request, context)

        return respond

    @contextmanager
    def _counting(self, method: str, context: _Context) -> Iterator[None]:
        began = self._clock()
        code = grpc.StatusCode.UNKNOWN
        try:
            yield
            code = _set_code(context) or grpc.StatusCode.OK
        except (asyncio.CancelledError, GeneratorExit):
            code = _why_cancelled(context)
            raise
        except grpc.aio.InternalError:  # A write or a read failed: nobody is there any more.
            code = _set_code(context) or _why_cancelled(context)
            raise
        except BaseException:
            code = _set_code(context) or grpc.StatusCode.UNKNOWN
            raise
        finally:
            self._metrics.request_finished(method, code.name, self._clock() - began)


async def _no_such_method(request: Any, context: _Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method here")


def _behaviour(handler: Any) -> tuple[Callable[..., _Handler], Callable[..., Any]]:
    """What makes a handler of the same kind, and the function in it."""
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            return grpc.unary_unary_rpc_method_handler, handler.unary_unary
        case False, True:
            return grpc.unary_stream_rpc_method_handler, handler.unary_stream
        case True, False:
            return grpc.stream_unary_rpc_method_handler, handler.stream_unary
        case _:
            return grpc.stream_stream_rpc_method_handler, handler.stream_stream


def _set_code(context: _Context) -> grpc.StatusCode | None:
    """The code that the handler or ``abort`` set, if any."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((each for each in grpc.StatusCode if code and each.value[0] == code), None)


def _why_cancelled(context: _Context) -> grpc.StatusCode:
    """The client left, or its time is over; both look alike from here but for the clock."""
    left: float | None = context.time_remaining()
    over = left is not None and left < _DEADLINE_SLACK_SECONDS
    return grpc.StatusCode.DEADLINE_EXCEEDED if over else grpc.StatusCode.CANCELLED
