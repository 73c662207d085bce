"""Lets no call through without a good token, and tells the services whose call it is.

It is an interceptor, so that no method can forget to ask. Health checks need no token: probes have none.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc

from storyloom_server.access import Gate
from storyloom_server.story_error import StoryError, abort
from storyloom_server.tenants import Tenant

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_OPEN = ("/grpc.health.v1.Health/",)
_tenant: ContextVar[Tenant] = ContextVar("storyloom_tenant")


def current_tenant() -> Tenant:
    """Whose call the running handler answers."""
    return _tenant.get()


class Authentication(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # Generic in the stubs alone.
    """Interceptor for ``grpc.aio.server(interceptors=[...])``; refuses with UNAUTHENTICATED, trailers only."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """The call's own handler, or one that refuses it."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        try:
            # The handler runs in this same task, and sees it.
            _tenant.set(self._gate.tenant(handler_call_details.invocation_metadata))
        except StoryError as error:
            return _refusing(error)
        return handler


def _refusing(error: StoryError) -> _Handler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await abort(context, error)

    return grpc.unary_unary_rpc_method_handler(refuse)
