"""What every call shares: errors become statuses, and pages have a size."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from storyloom_server import errors
from storyloom_server.authentication import current_tenant
from storyloom_server.store.errors import StoreError
from storyloom_server.story_error import StoryError, abort
from storyloom_server.violations import Violation

Context = grpc.aio.ServicerContext[Any, Any]
_Servicer = TypeVar("_Servicer")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_DEFAULT_PAGE, _LARGEST_PAGE = 20, 100


def answered(
    method: Callable[[_Servicer, _Request, Context], Awaitable[_Response]],
) -> Callable[[_Servicer, _Request, Context], Awaitable[_Response]]:
    """Ends the call with the status of whatever ``StoryError`` or ``StoreError`` the method raises."""

    @functools.wraps(method)
    async def answer(self: _Servicer, request: _Request, context: Context) -> _Response:
        try:
            return await method(self, request, context)
        except StoryError as error:
            failure = error
        except StoreError as error:
            failure = errors.from_store(error, current_tenant().name)
        await abort(context, failure)

    return answer


def page_size(asked: int) -> int:
    """Items of a page: the default for 0.

    Raises:
        StoryError: more are asked for than there may be.
    """
    if asked > _LARGEST_PAGE:
        raise errors.invalid_request([Violation("page_size", f"{asked} items; ask for at most {_LARGEST_PAGE}")])
    return asked or _DEFAULT_PAGE
