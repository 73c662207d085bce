"""The commands and their options."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from storyloom._errors import ServerError, StoryFileError
from storyloom._operations import Wish
from storyloom._story import Solver
from storyloom._story_file import StoryFile, load_story_file
from storyloom._version import __version__
from storyloom.cli import _characters as characters
from storyloom.cli import _models as models
from storyloom.cli import _stories as stories
from storyloom.cli import _wishes as wishes
from storyloom.cli._connection import Connection, connected
from storyloom.cli._display import choose_display
from storyloom.cli._exit import EXIT_CODES, ExitCode, exit_code, explain_in_file
from storyloom.cli._generate import Job, Outcome, plan_jobs, run_jobs
from storyloom.cli._options import SettingOption, apply, given_fields
from storyloom.cli._output import complain, errors, explained_errors
from storyloom.cli._stories import summary

app = typer.Typer(
    help="Make stories whose characters stay themselves from picture to picture.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they would show prompts
)
_Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Story files (YAML or JSON).")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"storyloom {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Make stories whose characters stay themselves from picture to picture."""


@app.command(epilog=EXIT_CODES)
@connected
def generate(
    connection: Connection,
    files: _Files,
    out: wishes.Out = Path("out"),
    seed: Annotated[int | None, typer.Option(help="Seed of the story.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, 1 (off) to 30.")] = None,
    solver: Annotated[Solver | None, typer.Option(help="How a step is taken.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Consistency adapter of the model.")] = None,
    method: Annotated[str | None, typer.Option(help="Story method: what frames see of each other.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=32, help="How often --method story-adapter makes the story.")
    ] = None,
    feature_injection: Annotated[
        bool, typer.Option("--feature-injection", help="With --method consistory: make the story twice.")
    ] = False,
    freeu: Annotated[bool, typer.Option("--freeu", help="FreeU, with the numbers of the file or the model.")] = False,
    identity_adapter: Annotated[
        str | None, typer.Option(help="What makes use of references; none: they are left aside.")
    ] = None,
    no_consistency: Annotated[
        bool, typer.Option("--no-consistency", help="Make every frame on its own, to compare.")
    ] = False,
    preview_interval: Annotated[int | None, typer.Option(help="Steps between rough pictures; 0 for none.")] = None,
    keep_previews: Annotated[bool, typer.Option("--keep-previews", help="Write the rough pictures, too.")] = False,
    request_id: wishes.RequestId = None,
    priority: wishes.PriorityOption = None,
    deadline: wishes.Deadline = None,
    detach: wishes.Detach = False,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="Give a story up after this time.")
    ] = None,
    no_progress: wishes.NoProgress = False,
) -> None:
    """Make the stories in FILE... and write pictures, a contact sheet and a record of each.

    Options win over what a file says. Several files are made at once. Each story gets a folder under --out, named after
    its title: frame-01.png and so on, contact-sheet.png, story.json. Ctrl-C cancels the stories on the server.
    """
    options = [
        SettingOption("--seed", ("seed",), seed),
        SettingOption("--steps", ("steps",), steps),
        SettingOption("--guidance", ("guidance_scale",), guidance),
        SettingOption("--solver", ("solver",), solver),
        SettingOption("--adapter", ("consistency", "adapter"), adapter),
        SettingOption("--method", ("consistency", "method"), method),
        SettingOption("--rounds", ("consistency", "rounds", "count"), rounds),
        SettingOption("--feature-injection", ("consistency", "feature_injection"), feature_injection or None),
        SettingOption("--freeu", ("freeu", "enabled"), freeu or None),
        SettingOption("--identity-adapter", ("identity_adapter",), identity_adapter),
        SettingOption("--no-consistency", ("consistency", "enabled"), False if no_consistency else None),
        SettingOption("--preview-interval", ("preview_interval",), preview_interval),
    ]
    if request_id is not None and len(files) > 1:
        raise typer.BadParameter("belongs to one story, and here are several files", param_hint="--request-id")
    jobs = plan_jobs([(file, apply(options, file.story)) for file in _load(files)], out)
    wish = Wish(request_id, priority, deadline)
    if detach:
        raise typer.Exit(_start(jobs, connection, wish, given_fields(options)))
    try:
        with choose_display(errors, quiet=no_progress) as display:
            outcomes = asyncio.run(
                run_jobs(jobs, connection, wish, timeout=timeout, keep_previews=keep_previews, display=display)
            )
    except KeyboardInterrupt:
        complain("interrupted; the server has been told to stop")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    raise typer.Exit(_report(outcomes, given_fields(options), connection.server))


@app.command(epilog=EXIT_CODES)
def validate(files: _Files) -> None:
    """Check story files without a server.

    A server checks more: what its model accepts.
    """
    for file in _load(files):
        story = file.story
        typer.echo(f"{file.path}: ok (frames: {len(story.frames)}, characters: {len(story.characters)})")


for _name, _command in (
    ("watch", stories.watch),
    ("status", stories.status),
    ("list", stories.list_stories),
    ("fetch", stories.fetch),
    ("cancel", stories.cancel),
    ("extend", stories.extend),
    ("redo", stories.redo),
):
    app.command(_name, epilog=EXIT_CODES)(_command)
app.add_typer(characters.app, name="characters")
app.add_typer(models.app, name="models")


@app.command(epilog=EXIT_CODES)
@connected
def health(connection: Connection) -> None:
    """Tell whether the server takes stories now."""
    with connection.client() as client, explained_errors(connection.server):
        state = client.health()
    typer.echo("ready" if state.ready else "alive, but not ready" if state.alive else "no answer")
    raise typer.Exit(ExitCode.OK if state.ready else ExitCode.UNAVAILABLE)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Start a server; takes the options of `python -m storyloom_server`."""
    if importlib.util.find_spec("storyloom_server") is None:
        complain("the server is not installed; run: pip install 'storyloom[server]'")
        raise typer.Exit(ExitCode.FAILED)
    # In place of this process, so that the server itself gets the signals.
    os.execv(sys.executable, [sys.executable, "-m", "storyloom_server", *context.args])  # noqa: S606


def _load(paths: list[Path]) -> list[StoryFile]:
    loaded: list[StoryFile] = []
    failed = False
    for path in paths:
        try:
            loaded.append(load_story_file(path))
        except StoryFileError as error:
            failed = True
            complain(str(error))
    if failed:
        raise typer.Exit(ExitCode.BAD_STORY)
    return loaded


def _start(jobs: list[Job], connection: Connection, wish: Wish, overrides: dict[str, str]) -> ExitCode:
    code = ExitCode.OK
    with connection.client() as client:
        for job in jobs:
            try:
                record = client.create_story(
                    job.story, request_id=wish.request_id, priority=wish.priority, deadline=wish.deadline
                )
            except ServerError as error:
                code = code or exit_code(error)
                complain(explain_in_file(error, job.file, overrides, connection.server))
            else:
                typer.echo(record.story_id)
    return code


def _report(outcomes: list[Outcome], overrides: dict[str, str], server: str) -> ExitCode:
    code = ExitCode.OK
    for outcome in outcomes:
        if outcome.error is not None:
            code = code or exit_code(outcome.error)
            complain(explain_in_file(outcome.error, outcome.job.file, overrides, server))
        elif outcome.result is not None:
            typer.echo(f"{outcome.job.folder}: {summary(outcome.result)}")
    return code
