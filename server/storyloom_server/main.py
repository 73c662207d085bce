"""Command line of the server."""

import asyncio
import sys
from collections.abc import Sequence

from storyloom_server import allocator, logs
from storyloom_server.catalog import ModelCatalog
from storyloom_server.operations import Operations
from storyloom_server.option_layers import OptionsError, read_options
from storyloom_server.options import ServerOptions
from storyloom_server.server import StoryServer, open_store
from storyloom_server.setup_error import SetupError
from storyloom_server.store import Store
from storyloom_server.store.errors import StoreError
from storyloom_server.version import VERSION

_BAD_SETUP = 2


def serve(options: ServerOptions) -> int:
    """Runs a server until it is told to stop.

    Returns:
        The exit code: 0 after SIGTERM or SIGINT, 1 when the engine died too often, 2 when it cannot be set up.
    """
    allocator.share_arenas()
    logs.set_up(options.log_level, options.log_format, prompts=options.log_prompts)
    try:
        catalog = ModelCatalog.load(options.model, options.model_folder)
        operations = Operations(options, VERSION, catalog.names)
        return asyncio.run(_run(options, catalog, operations, open_store(options)))
    except (SetupError, StoreError) as error:
        return _complain(str(error))


async def _run(options: ServerOptions, catalog: ModelCatalog, operations: Operations, store: Store) -> int:
    return await StoryServer(options, catalog, operations, store).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the options from the command line, the environment and the file, and serves."""
    try:
        read = read_options(sys.argv[1:] if arguments is None else arguments)
    except OptionsError as error:
        return _complain(*error.problems)
    if read.show:
        print(read.printed())
        return 0
    for warning in read.warnings:
        print(f"storyloom: warning: {warning}", file=sys.stderr)
    return serve(read.options)


def _complain(*problems: str) -> int:
    for problem in problems:
        print(f"storyloom: {problem}", file=sys.stderr)
    return _BAD_SETUP
