"""The database's tables are what the code believes them to be, whoever starts first, and never a newer version's."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import upgrade
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, insert, inspect, text

from storyloom_server.store import Features, features, journal, quotas, schema, tables
from storyloom_server.store.__main__ import main
from storyloom_server.store.database import connect
from storyloom_server.store.errors import StoreError, StoreSetupError, StoreUnavailableError
from tests.server.journals import Server, TurnedClock


def test_migrations_and_tables_agree(database_url: str) -> None:
    engine = connect(database_url)
    schema.upgrade(engine)
    schema.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
        where = {
            index["name"]: dict(index.get("dialect_options", {})) for index in inspect(connection).get_indexes("story")
        }
    assert any("finished_at IS NULL" in str(value) for value in where["ix_story_open"].values())
    engine.dispose()


def test_servers_that_start_at_once_upgrade_once(database_url: str) -> None:
    command = [sys.executable, "-m", "storyloom_server.store", "upgrade", database_url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, "0002\n"), errors


def test_what_an_older_version_stored_is_kept(database_url: str) -> None:
    """From revision 0001: a story and a character of then are used, and get features, by the code of now."""
    engine = connect(database_url)
    with engine.begin() as connection:
        upgrade(schema._config(connection), "0001")
        columns = {"id": "s", "tenant": "t", "request_digest": "d", "title": "", "model": "m", "state": "queued"}
        numbers = dict.fromkeys(("frames", "priority", "created_at", "updated_at", "lease_until", "crashes"), 0)
        rest = {"replica": "r", "life": "l", "sequence_reserved": 0, "cancel_requested": False, "size_bytes": 3}
        connection.execute(insert(tables.story), [columns | numbers | rest | {"request": b"abc"}])
        kept = {"id": "c", "tenant": "t", "name": "mia", "description": "a girl", "created_at": 0.0, "payload": b"xy"}
        connection.execute(insert(tables.character), [kept])
    engine.dispose()
    server = Server(database_url, TurnedClock())
    assert server(journal.request, "s") == b"abc"
    assert server(features.of_story, "s") == []
    server(features.keep_with_character, "c", "t", Features("digest", "encoders", b"12345"))
    assert server(quotas.usage, "t").size_bytes == 3 + 2 + 5
    server.database.close()


def test_database_of_a_newer_version_is_refused(database_url: str) -> None:
    engine = connect(database_url)
    schema.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreSetupError, match="9999, made by a newer version"):
        schema.upgrade(engine)
    engine.dispose()


def test_upgrade_that_fails_leaves_the_database_as_it_was(database_url: str) -> None:
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE artifact (key TEXT)"))  # In the way of the second table.
    with pytest.raises(Exception, match="artifact"):
        schema.upgrade(engine)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["artifact"]
    engine.dispose()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    for command, said in (("current", "empty"), ("upgrade", "0002"), ("current", "0002")):
        assert main([command, url]) == 0
        assert capsys.readouterr().out == f"{said}\n"
    assert main(["upgrade", "mysql://host/database"]) == 2
    assert "use sqlite or postgresql" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nonsense", "cannot be read"),
        ("sqlite://", "in memory keeps nothing"),
        ("sqlite:////no/such/folder/x.db", "/no/such/folder of the database does not exist"),
        ("mysql://host/x", "use sqlite or postgresql"),
        ("oracle2://host/x", "use sqlite or postgresql"),
    ],
)
def test_unusable_url_is_explained(url: str, what: str) -> None:
    with pytest.raises(StoreSetupError, match=what):
        schema.upgrade(connect(url))


def test_other_files_and_absent_servers_are_explained(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreUnavailableError, match="not an SQLite database"):
        schema.upgrade(connect(f"sqlite:///{tmp_path / 'x.db'}"))
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        schema.upgrade(connect("postgresql://user@127.0.0.1:1/x"))


def test_tables_made_without_migrations_would_be_noticed(tmp_path: Path) -> None:
    """The comparison above can fail."""
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    tables.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE story DROP COLUMN title"))
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) != []
    assert issubclass(StoreSetupError, StoreError)
