"""The commands on what is served, and the one that makes what can be served."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Annotated

import typer

from storyloom.cli._connection import Connection, connected
from storyloom.cli._exit import EXIT_CODES, ExitCode
from storyloom.cli._output import complain, explained_errors, models_table, print_table

app = typer.Typer(invoke_without_command=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the model.", show_default=False)]
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@connected
def list_models(connection: Connection, context: typer.Context) -> None:
    """List what the server can do; or see the commands.

    Loading, unloading and warming need a server that allows it.
    """
    if context.invoked_subcommand is None:
        with connection.client() as client, explained_errors(connection.server):
            print_table(models_table(client.list_models()))
    elif any(getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE" for name in context.params):
        raise typer.BadParameter(f"give options behind the command: storyloom models {context.invoked_subcommand} ...")


@connected
def load(connection: Connection, name: _Name) -> None:
    """Load a model from the server's folder of models."""
    with connection.client() as client, explained_errors(connection.server):
        print_table(models_table([client.load_model(name)]))


@connected
def unload(connection: Connection, name: _Name) -> None:
    """Unload a model."""
    with connection.client() as client, explained_errors(connection.server):
        client.unload_model(name)
    typer.echo(f"{name}: unloaded")


@connected
def warm(
    connection: Connection,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The default model without.", show_default=False)] = "",
) -> None:
    """Make a model ready for its first story."""
    with connection.client() as client, explained_errors(connection.server):
        typer.echo(f"{name or 'the default model'}: warm, seconds: {client.warm_model(name):.1f}")


@app.command("add", add_help_option=False, context_settings=_PASSED_ON)
def add(context: typer.Context) -> None:
    """Make a model package of a published base model; needs the server's libraries on this machine."""
    _pass_on("add", context)


@app.command("add-adapter", add_help_option=False, context_settings=_PASSED_ON)
def add_adapter(context: typer.Context) -> None:
    """Add a published identity adapter or LoRA to a model package; as `add`."""
    _pass_on("add-adapter", context)


@app.command("add-controlnet", add_help_option=False, context_settings=_PASSED_ON)
def add_controlnet(context: typer.Context) -> None:
    """Add a published ControlNet to a model package; as `add`."""
    _pass_on("add-controlnet", context)


@app.command("add-finder", add_help_option=False, context_settings=_PASSED_ON)
def add_finder(context: typer.Context) -> None:
    """Add what finds characters by their words to a model package; as `add`."""
    _pass_on("add-finder", context)


def _pass_on(command: str, context: typer.Context) -> None:
    if importlib.util.find_spec("storyloom_model") is None:
        complain("the models' libraries are not installed; run: pip install 'storyloom[server]'")
        raise typer.Exit(ExitCode.FAILED)
    os.execv(sys.executable, [sys.executable, "-m", "storyloom_model.adding", command, *context.args])  # noqa: S606


app.callback(epilog=EXIT_CODES)(list_models)
for _name, _command in (("load", load), ("unload", unload), ("warm", warm)):
    app.command(_name, epilog=EXIT_CODES)(_command)
