"""The commands and their options."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from storyloom._channel import DEFAULT_SERVER
from storyloom._client import StoryClient
from storyloom._errors import ServerError, StoryFileError
from storyloom._events import ModelInfo
from storyloom._story import Settings, Solver
from storyloom._story_file import StoryFile, load_story_file
from storyloom._version import __version__
from storyloom.cli._display import choose_display
from storyloom.cli._exit import ExitCode, exit_code, explain, explain_in_file
from storyloom.cli._generate import Outcome, plan_jobs, run_jobs
from storyloom.cli._options import SettingOption, apply, given_fields

_EXIT_CODES = (
    "Exit codes: 0 all well; 2 a story file or story is wrong; 3 the server is unavailable or busy; "
    "130 interrupted; 1 anything else."
)

app = typer.Typer(
    help="Make stories whose characters stay themselves from picture to picture.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they would show prompts
)
_errors = Console(stderr=True)

_Server = Annotated[
    str,
    typer.Option("--server", "-s", envvar="STORYLOOM_SERVER", help="Host and port of the server.", metavar="ADDRESS"),
]
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


@app.command(epilog=_EXIT_CODES)
def generate(
    files: _Files,
    server: _Server = DEFAULT_SERVER,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", file_okay=False)] = Path("out"),
    seed: Annotated[int | None, typer.Option(help="Seed of the story.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, 1 (off) to 30.")] = None,
    solver: Annotated[Solver | None, typer.Option(help="How a step is taken.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Consistency adapter of the model.")] = None,
    no_consistency: Annotated[
        bool, typer.Option("--no-consistency", help="Make every frame on its own, to compare.")
    ] = False,
    preview_interval: Annotated[int | None, typer.Option(help="Steps between rough pictures; 0 for none.")] = None,
    keep_previews: Annotated[bool, typer.Option("--keep-previews", help="Write the rough pictures, too.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds for each story.")] = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Show nothing until all is done.")] = False,
) -> None:
    """Make the stories in FILE... and write pictures, a contact sheet and a record of each.

    Options win over what a file says. Several files are made at once. Each story gets a folder under --out, named after
    its title: frame-01.png and so on, contact-sheet.png, story.json.
    """
    options = [
        SettingOption("--seed", ("seed",), seed),
        SettingOption("--steps", ("steps",), steps),
        SettingOption("--guidance", ("guidance_scale",), guidance),
        SettingOption("--solver", ("solver",), solver),
        SettingOption("--adapter", ("consistency", "adapter"), adapter),
        SettingOption("--no-consistency", ("consistency", "enabled"), False if no_consistency else None),
        SettingOption("--preview-interval", ("preview_interval",), preview_interval),
    ]
    jobs = plan_jobs([(file, apply(options, file.story)) for file in _load(files)], out)
    try:
        with choose_display(_errors, quiet=no_progress) as display:
            outcomes = asyncio.run(
                run_jobs(jobs, server, timeout=timeout, keep_previews=keep_previews, display=display)
            )
    except KeyboardInterrupt:
        _complain("interrupted; the server has been told to stop")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    raise typer.Exit(_report(outcomes, given_fields(options), server))


@app.command(epilog=_EXIT_CODES)
def validate(files: _Files) -> None:
    """Check story files without a server.

    A server checks more: what its model accepts.
    """
    for file in _load(files):
        story = file.story
        typer.echo(f"{file.path}: ok (frames: {len(story.frames)}, characters: {len(story.characters)})")


@app.command(epilog=_EXIT_CODES)
def models(server: _Server = DEFAULT_SERVER) -> None:
    """List what the server can do."""
    with StoryClient(server) as client:
        try:
            served = client.list_models()
        except ServerError as error:
            raise _failed(error, server) from error
    Console().print(_models_table(served))


@app.command(epilog=_EXIT_CODES)
def health(server: _Server = DEFAULT_SERVER) -> None:
    """Tell whether the server takes stories now."""
    with StoryClient(server) as client:
        try:
            state = client.health()
        except ServerError as error:
            raise _failed(error, server) from error
    typer.echo("ready" if state.ready else "alive, but not ready" if state.alive else "no answer")
    raise typer.Exit(ExitCode.OK if state.ready else ExitCode.UNAVAILABLE)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Start a server; takes the options of `python -m storyloom_server`."""
    if importlib.util.find_spec("storyloom_server") is None:
        _complain("the server is not installed; run: pip install 'storyloom[server]'")
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
            _complain(str(error))
    if failed:
        raise typer.Exit(ExitCode.BAD_STORY)
    return loaded


def _report(outcomes: list[Outcome], overrides: dict[str, str], server: str) -> ExitCode:
    code = ExitCode.OK
    for outcome in outcomes:
        if outcome.error is not None:
            code = code or exit_code(outcome.error)
            _complain(explain_in_file(outcome.error, outcome.job.file, overrides, server))
        elif outcome.result is not None:
            seconds = outcome.result.timings.total
            typer.echo(f"{outcome.job.folder}: frames: {len(outcome.result.pictures)}, seconds: {seconds:.1f}")
    return code


def _failed(error: ServerError, server: str) -> typer.Exit:
    _complain(explain(error, server))
    return typer.Exit(exit_code(error))


def _complain(message: str) -> None:
    _errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


def _models_table(served: tuple[ModelInfo, ...]) -> Table:
    table = Table("model", "sizes", "defaults", "limits", "solvers", "adapters")
    for model in served:
        limits = model.limits
        table.add_row(
            f"{model.name} (default)" if model.is_default else model.name,
            ", ".join(f"{width}x{height}" for width, height in model.sizes),
            _settings_text(model.defaults),
            f"{limits.max_frames} frames, {limits.max_characters} characters, {limits.max_steps} steps, "
            f"{limits.max_prompt_tokens} tokens",
            ", ".join(model.solvers),
            ", ".join(model.adapters),
        )
    return table


def _settings_text(settings: Settings) -> str:
    parts = [f"{settings.steps} steps", f"guidance {settings.guidance_scale}", settings.solver]
    return ", ".join(str(part) for part in parts if part)
