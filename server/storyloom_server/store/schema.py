"""Brings a database's tables to what this version needs, also when several servers start at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from storyloom_server.store.database import telling_errors
from storyloom_server.store.errors import StoreSetupError

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any number, so long as it stays the same: what PostgreSQL knows this lock by.
_ADVISORY_LOCK = 5_709_120_331


def upgrade(engine: Engine) -> None:
    """Runs the migrations that the database lacks, in one transaction, one server after the other.

    Raises:
        StoreSetupError: the database was made by a newer version.
    """
    with telling_errors(), _locked(engine), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        config = _config(connection)
        revision = current(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if revision is not None and revision not in known:
            raise StoreSetupError(
                f"the database is at revision {revision}, made by a newer version of Storyloom; "
                "run that version, or restore a backup from before the upgrade"
            )
        command.upgrade(config, "head")


def current(connection: Connection) -> str | None:
    """The database's revision; None for an empty database."""
    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _locked(engine: Engine) -> Iterator[None]:
    """Keeps other processes from upgrading the same SQLite file meanwhile, and turns WAL mode on.

    SQLite's own lock does not do: where two processes turn WAL mode on at once, one fails without waiting.
    """
    if engine.dialect.name != "sqlite" or engine.url.database is None:
        yield
        return
    path = Path(engine.url.database)
    if not path.parent.is_dir():
        raise StoreSetupError(f"the folder {path.parent} of the database does not exist; make it first")
    with path.with_name(f"{path.name}.upgrade-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode = WAL")
        finally:
            raw.close()
        yield
