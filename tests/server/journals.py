"""What the tests of the store share: a clock to turn, stories to accept, and a server's view of a database."""

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from storyloom_server.store import NewEvent, NewStory, Owner, Store, Transaction, schema
from storyloom_server.store.database import Database, connect

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
LEASE_SECONDS = 30.0


@dataclass
class TurnedClock:
    """A clock that a test turns."""

    time: float = 1_000_000.0

    def __call__(self, connection: Connection) -> float:
        return self.time


@dataclass
class Server:
    """One life of a server, as far as the database is concerned: every call is a transaction of its own."""

    url: str
    clock: Callable[[Connection], float] = field(default_factory=TurnedClock)
    replica: str = "a"
    database: Database = field(init=False)

    def __post_init__(self) -> None:
        engine = connect(self.url)
        schema.upgrade(engine)
        self.database = Database(engine, Owner(self.replica, uuid.uuid4().hex), LEASE_SECONDS, self.clock)

    def __call__(
        self,
        operation: Callable[Concatenate[Transaction, Parameters], Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        with self.database.transaction() as transaction:
            return operation(transaction, *args, **kwargs)

    def restarted(self) -> "Server":
        """The same server after its death."""
        self.database.close()
        return Server(self.url, self.clock, self.replica)


def new_story(tenant: str = "tenant", request: bytes = b"a fox", **fields: Any) -> NewStory:
    return NewStory(
        **{
            "id": uuid.uuid4().hex,
            "tenant": tenant,
            "request": request,
            "request_digest": hashlib.sha256(request).hexdigest(),
            "model": "mini",
            "frames": 4,
            **fields,
        }
    )


async def blob_keys(store: Store) -> list[str]:
    """Keys of all blobs of stories."""
    return [key async for keys in store.blob_keys(at_once=3) for key in keys]


def new_events(*numbers: int) -> list[NewEvent]:
    return [NewEvent(number, f"event {number}".encode()) for number in numbers]
