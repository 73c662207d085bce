"""Group commit: operations that come while a transaction is being stored share the next one.

A commit waits for the disk, so that a store with one commit for each event would be as slow as the disk is. Nobody
waits for a group to fill: an operation that comes alone is stored at once.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from storyloom_server.store.database import Database, Transaction
from storyloom_server.store.errors import StoreBusyError, StoreUnavailableError

Result = TypeVar("Result")
_LARGEST_GROUP = 256


@dataclass(frozen=True, slots=True)
class _Work:
    operation: Callable[[Transaction], Any]
    future: Future[Any]


class GroupWriter:
    """Threads that run writing operations, several of them in one transaction where they can."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"store-writer-{index}", daemon=True)
            for index in range(database.concurrent_writers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, operation: Callable[[Transaction], Result]) -> Future[Result]:
        """Runs ``operation`` soon. Its result is stored when the future has it.

        The operation may run more than once, until its transaction is stored.
        """
        if self._closed:
            raise StoreUnavailableError("the store is closed; the server is stopping")
        work = _Work(operation, Future())
        self._queue.put(work)
        return work.future

    def close(self) -> None:
        """Runs what is waiting, then ends the threads."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while self._store_next():
            pass

    def _store_next(self) -> bool:
        """Waits for work and stores a group of it; False when nothing more will come for this thread.

        A call of its own for each group, so that a thread that waits holds nothing of the group before: not its
        results, and not its errors with all that they were raised through.
        """
        first = self._queue.get()
        if first is None:
            return False
        group = [first]
        last = self._fill(group)
        self._store([work for work in group if work.future.set_running_or_notify_cancel()])
        return not last

    def _fill(self, group: list[_Work]) -> bool:
        """Adds what waits already; True when nothing more will come for this thread."""
        while len(group) < _LARGEST_GROUP:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                return False
            if work is None:
                return True
            group.append(work)
        return False

    def _store(self, group: list[_Work]) -> None:
        if len(group) == 1:
            self._store_alone(group[0])
            return
        try:
            with self._database.transaction() as transaction:
                results = [work.operation(transaction) for work in group]
        except Exception:  # noqa: BLE001  # Whoever waits gets it, below.
            self._store_one_by_one(group)
            return
        for work, result in zip(group, results, strict=True):
            work.future.set_result(result)

    def _store_one_by_one(self, group: list[_Work]) -> None:
        """Gives each its own error or result. Where the database itself does not serve, the rest need not wait too."""
        for index, work in enumerate(group):
            self._store_alone(work)
            error = work.future.exception()
            if isinstance(error, StoreBusyError | StoreUnavailableError):
                for other in group[index + 1 :]:
                    other.future.set_exception(error)
                return

    def _store_alone(self, work: _Work) -> None:
        try:
            with self._database.transaction() as transaction:
                result = work.operation(transaction)
        except Exception as error:  # noqa: BLE001  # Whoever waits for the future gets it.
            work.future.set_exception(error)
        else:
            work.future.set_result(result)
