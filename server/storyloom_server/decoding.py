"""Answers requests that are no message of their method: gRPC itself would call them UNKNOWN and log each in full.

Bytes are read in the handler's own call, so that a request that cannot be read is refused, counted and told like any
other bad request.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from storyloom_server import errors
from storyloom_server.story_error import abort

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RequestDecoder(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # Generic only to the stubs.
    """Interceptor for ``grpc.aio.server(interceptors=[...])``; reads what ``async`` methods with one request get."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Replaces the call's handler by one that reads its request itself."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if not inspect.iscoroutinefunction(behaviour):
            return handler  # type: ignore[no-any-return]
        make = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(_reading(handler.request_deserializer, behaviour), response_serializer=handler.response_serializer)


def _reading(
    read: Callable[[bytes], Any], behaviour: Callable[[Any, _Context], Awaitable[Any]]
) -> Callable[[bytes, _Context], Awaitable[Any]]:
    async def respond(data: bytes, context: _Context) -> Any:
        try:
            request = read(data)
        except DecodeError:
            await abort(context, errors.undecodable())
        return await behaviour(request, context)

    return respond
