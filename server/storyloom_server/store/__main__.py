"""Looks after a database by hand: ``python -m storyloom_server.store upgrade|current URL``.

A server upgrades its database itself when it starts; this is for those who want to do it before.
"""

import argparse
import sys
from collections.abc import Sequence

from storyloom_server.store import schema
from storyloom_server.store.database import connect, telling_errors
from storyloom_server.store.errors import StoreError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0, or 2 when the database cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m storyloom_server.store", description="Storyloom's database.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="bring the tables to what this version needs")
    commands.add_parser("current", help="print the revision of the tables")
    for command in commands.choices.values():
        command.add_argument(
            "url", metavar="URL", help="sqlite:////folder/stories.db or postgresql://user@host/database"
        )
    options = parser.parse_args(arguments)
    try:
        engine = connect(options.url)
        if options.command == "upgrade":
            schema.upgrade(engine)
        with telling_errors(), engine.connect() as connection:
            print(schema.current(connection) or "empty")
    except StoreError as error:
        print(f"storyloom: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
