"""The asyncio client driven from ordinary code, so that one test serves both clients."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Self

from storyloom import AsyncStoryClient

Connect = Callable[..., Any]


class BlockingClient:
    """Has the methods of `StoryClient`, each of which awaits that of an `AsyncStoryClient`."""

    def __init__(self, server: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> AsyncStoryClient:
            return AsyncStoryClient(server, **options)

        try:
            self._client = self._loop.run_until_complete(make())
        except BaseException:
            self._loop.close()
            raise

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return self._iterate(result) if inspect.isasyncgen(result) else self._loop.run_until_complete(result)

        return call

    def _iterate(self, items: AsyncGenerator[Any, None]) -> Iterator[Any]:
        try:
            while True:
                try:
                    item = self._loop.run_until_complete(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._loop.run_until_complete(items.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()
