"""Questions to the engine about references: each waits for its answer, or for the engine's end."""

import asyncio
from dataclasses import dataclass

from storyloom_server import messages


class EngineGoneError(Exception):
    """There is no engine, or it died before it answered. ``suspect``: these references were being encoded then."""

    def __init__(self, *, suspect: bool) -> None:
        super().__init__("the engine process is gone")
        self.suspect = suspect


@dataclass(slots=True)
class _Call:
    answer: asyncio.Future[messages.ReferencesEncoded]
    begun: bool = False


class ReferenceCalls:
    """Those that wait. Use it on one event loop."""

    def __init__(self) -> None:
        self._calls: dict[str, _Call] = {}

    async def wait(self, job_id: str) -> messages.ReferencesEncoded:
        """Waits for the answer to what was just sent under this id.

        Raises:
            EngineGoneError: it will not come.
        """
        call = self._calls[job_id] = _Call(asyncio.get_running_loop().create_future())
        try:
            return await call.answer
        finally:
            self._calls.pop(job_id, None)

    def hear(self, message: messages.ReferenceMessage) -> None:
        """Takes what the engine says. Answers that nobody waits for any more are left aside."""
        call = self._calls.get(message.job_id)
        if call is None:
            return
        if isinstance(message, messages.ReferencesBegun):
            call.begun = True
        elif not call.answer.done():
            call.answer.set_result(message)

    def lose(self) -> None:
        """The engine is gone."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.answer.done():
                call.answer.set_exception(EngineGoneError(suspect=call.begun))
