"""Commands on the characters that the server keeps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from storyloom._story import Settings, Solver
from storyloom.cli._connection import Connection, connected
from storyloom.cli._exit import EXIT_CODES
from storyloom.cli._output import characters_table, complain, explained_errors, print_table, time_text

app = typer.Typer(help="Characters that any number of stories can use, by id.", no_args_is_help=True)

_Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the character.", show_default=False)]


@connected
def create(
    connection: Connection,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For you, to tell it from others.", show_default=False)],
    description: Annotated[str, typer.Option("--description", "-d", help="How it looks.")] = "",
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", "-r", exists=True, dir_okay=False, help="A picture of it; may be given again."),
    ] = None,
) -> None:
    """Make a character and print its id, for `id:` in story files.

    It needs a description, a reference, or both.
    """
    if not description.strip() and not reference:
        raise typer.BadParameter("give a --description, a --reference, or both")
    with connection.client() as client, explained_errors(connection.server):
        try:
            made = client.create_character(name, description, reference or ())
        except ValidationError as error:
            problems = "; ".join(str(fault["msg"]) for fault in error.errors(include_url=False))
            raise typer.BadParameter(problems, param_hint="--reference") from error
    for note in made.reference_notes:
        complain(note)
    typer.echo(made.character_id)


@connected
def discover(
    connection: Connection,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For you, to tell it from others.", show_default=False)],
    description: Annotated[str, typer.Option("--description", "-d", help="How it looks.", show_default=False)],
    style: Annotated[str, typer.Option(help='In front of the description, such as "a photo of".')] = "",
    candidates: Annotated[int | None, typer.Option(min=4, max=64, help="Pictures to find it in.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=8, help="Rounds of the filter.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the candidates.")] = None,
    model: Annotated[str, typer.Option(help="A model that takes references.")] = "",
    loops: Annotated[int | None, typer.Option(min=1, max=4, help="Later ones start from what was found.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What candidates should not show.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of candidates.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1, max=30, help="Guidance scale of candidates.")] = None,
    solver: Annotated[Solver | None, typer.Option(help="Solver of candidates.")] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", metavar="ID", help="Joins what an earlier call with this id began.")
    ] = None,
) -> None:
    """Find a character from its description alone, and print its id, for `id:` in story files.

    The server makes candidate pictures and keeps the looks that most of them agree on. It goes on when this is
    interrupted; the same --request-id joins in.
    """
    with connection.client() as client, explained_errors(connection.server):
        found = client.discover_character(
            name,
            description,
            style=style,
            candidates=candidates,
            rounds=rounds,
            seed=seed,
            model=model,
            request_id=request_id,
            loops=loops,
            negative_prompt=negative_prompt,
            settings=Settings(steps=steps, guidance_scale=guidance, solver=solver),
        )
    for note in found.reference_notes:
        complain(note)
    typer.echo(found.character_id)


@connected
def list_characters(
    connection: Connection,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
) -> None:
    """List your characters, newest first."""
    with connection.client() as client, explained_errors(connection.server):
        print_table(characters_table(itertools.islice(client.list_characters(), limit)))


@connected
def show(connection: Connection, character_id: _Id) -> None:
    """Show a character."""
    with connection.client() as client, explained_errors(connection.server):
        character = client.get_character(character_id)
    typer.echo(f"character: {character.character_id}")
    typer.echo(f"name: {character.name}")
    if character.description:
        typer.echo(f"description: {character.description}")
    typer.echo(f"references: {character.references}")
    for note in character.reference_notes:
        typer.echo(f"  {note}")
    if character.created:
        typer.echo(f"created: {time_text(character.created)}")


@connected
def delete(connection: Connection, character_id: _Id) -> None:
    """Delete a character. Stories that were accepted with it keep it."""
    with connection.client() as client, explained_errors(connection.server):
        client.delete_character(character_id)
    typer.echo(f"{character_id}: deleted")


for _name, _command in (
    ("create", create),
    ("discover", discover),
    ("list", list_characters),
    ("show", show),
    ("delete", delete),
):
    app.command(_name, epilog=EXIT_CODES)(_command)
