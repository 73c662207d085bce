"""Command line of the server."""

import asyncio
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from storyloom_server import logs
from storyloom_server.catalog import CatalogError, ModelCatalog
from storyloom_server.options import ServerOptions
from storyloom_server.server import AddressError, StoryServer

_BAD_SETUP = 2


def serve(options: ServerOptions) -> int:
    """Runs a server until it is told to stop.

    Returns:
        The exit code: 0 after SIGTERM or SIGINT, 1 when the engine died, 2 when it cannot be set up.
    """
    logs.set_up(options.log_level, options.log_format)
    try:
        return asyncio.run(_run(options))
    except (CatalogError, AddressError) as error:
        print(f"storyloom: {error}", file=sys.stderr)
        return _BAD_SETUP


async def _run(options: ServerOptions) -> int:
    return await StoryServer(options, ModelCatalog.load(options.model)).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the options from the command line and the environment, and serves."""
    try:
        options = CliApp.run(ServerOptions, cli_args=list(sys.argv[1:] if arguments is None else arguments))
    except ValidationError as error:
        for detail in error.errors():
            option = str(detail["loc"][0]).replace("_", "-") if detail["loc"] else "options"
            print(f"storyloom: --{option}: {detail['msg']}", file=sys.stderr)
        return _BAD_SETUP
    except SettingsError as error:
        print(f"storyloom: {error}", file=sys.stderr)
        return _BAD_SETUP
    return serve(options)
