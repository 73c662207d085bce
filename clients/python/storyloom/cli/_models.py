"""The command on what is served."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from storyloom.cli._connection import Connection, connected
from storyloom.cli._output import explained_errors, models_table, print_table


class Action(enum.StrEnum):
    """What can be done with a model."""

    LOAD = "load"
    UNLOAD = "unload"
    WARM = "warm"


@connected
def models(
    connection: Connection,
    action: Annotated[
        Action | None,
        typer.Argument(metavar="[ACTION]", help="load, unload or warm; nothing: list.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Of the model.", show_default=False)] = "",
) -> None:
    """List what the server can do, or load, unload or warm a model by NAME.

    Loading, unloading and warming need a server that allows it. `warm` without NAME warms the default model.
    """
    if action in (Action.LOAD, Action.UNLOAD) and not name:
        raise typer.BadParameter(f"name the model to {action}, as in: storyloom models {action} NAME")
    with connection.client() as client, explained_errors(connection.server):
        match action:
            case Action.LOAD:
                print_table(models_table([client.load_model(name)]))
            case Action.UNLOAD:
                client.unload_model(name)
                typer.echo(f"{name}: unloaded")
            case Action.WARM:
                typer.echo(f"{name or 'the default model'}: warm, seconds: {client.warm_model(name):.1f}")
            case _:
                print_table(models_table(client.list_models()))
