"""The connection to SQLite or PostgreSQL: transactions, their clock, and errors that say what to do.

SQLite runs in WAL mode with ``synchronous=FULL``: a committed transaction survives a power cut, not only the death of
the process, at the price of one fsync a commit (which concurrent stories share, see ``writer``). Readers never wait for
the writer, nor the other way round.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, extract, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.sql.dml import ReturningInsert

from storyloom_server.store.errors import (
    StorageFullError,
    StoreBusyError,
    StoreError,
    StoreSetupError,
    StoreUnavailableError,
)

_BUSY_SECONDS = 5.0
_CONNECTIONS = 8
# Execution option of connections whose transactions write.
_WRITES = "storyloom_writes"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who works on stories: ``replica`` is the same after a restart, ``life`` is one run of the server."""

    replica: str
    life: str


@dataclass
class Transaction:
    """What every operation of the store gets: an open transaction, and who makes it.

    All of it happens or nothing. ``lease_seconds``: for how long a story stays its owner's without a renewal.
    """

    connection: Connection
    owner: Owner
    lease_seconds: float
    clock: Callable[[Connection], float]

    @cached_property
    def now(self) -> float:
        """Epoch seconds, the same in all of the transaction."""
        return self.clock(self.connection)


@dataclass
class Database:
    """A pool of connections to one database, whose tables are as this version needs them."""

    engine: Engine
    owner: Owner
    lease_seconds: float
    clock: Callable[[Connection], float]
    _writing: Engine = field(init=False)

    def __post_init__(self) -> None:
        self._writing = self.engine.execution_options(**{_WRITES: True})

    @property
    def concurrent_writers(self) -> int:
        """How many threads may write at once: SQLite has one writer."""
        return 1 if self.engine.dialect.name == "sqlite" else 4

    @contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[Transaction]:
        """A transaction, committed at the end of the block, rolled back by an exception.

        Raises:
            StoreBusyError, StoreUnavailableError, StorageFullError: nothing was stored, except when the connection
                broke during the commit itself: then it may have been. Operations of the store may be called again.
        """
        with telling_errors(), (self._writing if writes else self.engine).begin() as connection:
            yield Transaction(connection, self.owner, self.lease_seconds, self.clock)

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()


def system_clock(connection: Connection) -> float:
    """This machine's clock."""
    return time.time()


def database_clock(connection: Connection) -> float:
    """The database server's clock: servers that share stories judge leases by one clock, however theirs differ."""
    return float(connection.execute(select(extract("epoch", func.clock_timestamp()))).scalar_one())


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Inserts a row, unless one of its unique keys exists already. Whether it did."""
    return connection.execute(_insert_new(connection.dialect.name, table), values).first() is not None


@cache
def _insert_new(dialect: str, table: Table) -> ReturningInsert[Any]:
    # The number of affected rows is not to be had from every driver.
    key = table.primary_key
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing().returning(*key)
    return postgresql.insert(table).on_conflict_do_nothing().returning(*key)


def connect(url: str, *, busy_seconds: float = _BUSY_SECONDS) -> Engine:
    """An engine for ``url``, which connects when it is first used.

    Args:
        url: ``sqlite:////folder/file.db`` or ``postgresql://user:password@host/database``.
        busy_seconds: how long a call waits for a lock that somebody else holds.

    Raises:
        StoreSetupError: the URL names no database that can be used.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            return _connect_sqlite(parsed, busy_seconds)
        if backend == "postgresql":
            return _connect_postgresql(parsed, busy_seconds)
    except (ArgumentError, NoSuchModuleError) as error:
        # Not the URL itself: it may hold a password.
        raise StoreSetupError(
            "the database URL cannot be read; write it as sqlite:////folder/file.db or postgresql://user@host/database"
        ) from error
    except ModuleNotFoundError as error:
        raise StoreSetupError(
            f"the database needs the Python package {error.name}; install storyloom[postgres]"
        ) from error
    raise StoreSetupError(f"{backend} is no database that stories can be kept in; use sqlite or postgresql")


def _connect_sqlite(url: URL, busy_seconds: float) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise StoreSetupError(
            "an SQLite database in memory keeps nothing; give a file, as in sqlite:////folder/file.db"
        )
    engine = create_engine(url, pool_size=_CONNECTIONS, connect_args={"timeout": busy_seconds})

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # Transactions begin where we say so, below.
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        # What a user has deleted is overwritten, and does not lie in the file until its place is needed.
        connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that began as a reader could not wait for the write lock.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _connect_postgresql(url: URL, busy_seconds: float) -> Engine:
    # A connection that broke while nobody used it (a restart of the database, say) is made anew unnoticed.
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"), pool_size=_CONNECTIONS, pool_timeout=busy_seconds, pool_pre_ping=True
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: Any) -> None:
        connection.execute(f"SET lock_timeout = {int(busy_seconds * 1000)}")
        connection.commit()

    return engine


@contextmanager
def telling_errors() -> Iterator[None]:
    """Turns the drivers' errors into the store's."""
    try:
        yield
    except DBAPIError as error:
        told = _sqlite_error(error.orig) if isinstance(error.orig, sqlite3.Error) else _postgresql_error(error)
        if told is None:  # A mistake of ours.
            raise
        raise told from error
    except sqlite3.Error as error:  # Outside SQLAlchemy, while a connection is set up.
        raise _sqlite_error(error) or error from error
    except PoolTimeoutError as error:
        raise StoreBusyError("every connection to the database is in use; try again") from error


_SQLITE_ERRORS: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_FULL: (StorageFullError, "the database's disk is full; free some space"),
    sqlite3.SQLITE_BUSY: (StoreBusyError, "the database is locked by another process; try again"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "the database is locked by another process; try again"),
    sqlite3.SQLITE_IOERR: (StoreUnavailableError, "the database's disk reports an error; look at the system log"),
    sqlite3.SQLITE_CANTOPEN: (StoreUnavailableError, "the database file cannot be opened; look at its folder's rights"),
    sqlite3.SQLITE_READONLY: (StoreUnavailableError, "the database file cannot be written; look at its rights"),
    sqlite3.SQLITE_CORRUPT: (StoreUnavailableError, "the database file is damaged; restore a backup"),
    sqlite3.SQLITE_NOTADB: (StoreUnavailableError, "the database file is not an SQLite database; look at the path"),
}
_PRIMARY_CODE = 0xFF


def _sqlite_error(error: sqlite3.Error) -> StoreError | None:
    kind, message = _SQLITE_ERRORS.get(getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE, (None, ""))
    return kind(message) if kind is not None else None


def _postgresql_error(error: DBAPIError) -> StoreError | None:
    state: str = getattr(error.orig, "sqlstate", None) or ""
    reason = str(error.orig).strip().partition("\n")[0]
    if state == "53100":
        return StorageFullError("the database server's disk is full; free some space")
    if state in ("55P03", "40P01", "40001"):  # lock_not_available, deadlock_detected, serialization_failure
        return StoreBusyError("another transaction holds what this one needs; try again")
    # Connection broken (08), refused (28, 3D), too many connections (53), shutting down (57P), or no answer at all.
    silent = not state and isinstance(error, OperationalError)
    if error.connection_invalidated or state[:2] in ("08", "28", "3D", "53") or state[:3] == "57P" or silent:
        return StoreUnavailableError(f"the database does not answer: {reason}")
    return None
