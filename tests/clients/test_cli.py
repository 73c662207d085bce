"""The command, in process and as a process: output, files, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from google.rpc import error_details_pb2
from rich.console import Console
from typer.testing import CliRunner

from storyloom import Accepted, Done, FrameDone, Preview, Progress, Settings, Stage, StoryResult, Timings, __version__
from storyloom._events import Picture
from storyloom.cli import app
from storyloom.cli._display import LineDisplay, LiveDisplay
from storyloom.cli._generate import slug
from tests.clients.scripted import ScriptedServer, until_cancelled
from tests.clients.scripts import Request, Response, failing, png, whole_story

_ROOT = Path(__file__).resolve().parents[2]
_STORY = """title: A day out
characters: {mia: a young woman}
frames:
  - "{mia} is walking"
  - "{mia} is [bold]waving[/bold]"
settings:
  preview_interval: 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "day.yaml"
    path.write_text(_STORY, encoding="utf-8")
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _violation(field: str, description: str) -> Any:
    bad = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return failing(
        grpc.StatusCode.INVALID_ARGUMENT, "the story is not valid", error_details_pb2.BadRequest(field_violations=[bad])
    )


def test_generate_writes_the_story(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = _run("generate", file, "--server", server.address, "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out / 'a-day-out'}: frames: 2, seconds: 8.2, consistency: mia 0.88\n"
    result = StoryResult.load(out / "a-day-out")
    assert result.seeds == (100, 101)
    assert not (out / "a-day-out" / "previews").exists()
    # Standard error is no terminal here: lines, without repetition.
    assert done.stderr.splitlines() == [
        "a-day-out: accepted, 1 in front",
        "a-day-out: queued, 1 in front",
        "a-day-out: encoding",
        *[f"a-day-out: step {step} of 4" for step in range(1, 5)],
        "a-day-out: frame 2 of 2 done",
        "a-day-out: frame 1 of 2 done",
    ]


def test_options_win_over_the_file(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    options = "--seed 5 --steps 3 --guidance 2.5 --solver unipc --adapter amsa --method consistory --no-consistency"
    options += " --preview-interval 1 --rounds 5 --feature-injection --freeu"
    done = _run("generate", file, "-s", server.address, "-o", tmp_path / "out", *options.split(), "--keep-previews")
    assert done.exit_code == 0, done.output
    sent = server.requests[0].story.settings
    assert (sent.seed, sent.steps, sent.guidance_scale, sent.solver, sent.preview_interval) == (5, 3, 2.5, 3, 1)
    assert (sent.consistency.adapter, sent.consistency.method) == ("amsa", "consistory")
    assert sent.consistency.rounds.count == 5
    assert (sent.consistency.feature_injection, sent.freeu.enabled) == (True, True)
    assert sent.consistency.HasField("enabled")
    assert not sent.consistency.enabled
    names = sorted(path.name for path in (tmp_path / "out" / "a-day-out" / "previews").iterdir())
    assert names == [f"frame-{frame:02}-step-{step:03}.png" for frame in (1, 2) for step in (1, 2, 3)]


def test_several_files_run_at_once_in_folders_of_their_own(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(_STORY, encoding="utf-8")
    together = threading.Barrier(2, timeout=10)

    def script(request: Request, context: Any) -> Iterator[Response]:
        together.wait()
        yield from whole_story(request, context)

    server.script = script
    done = _run("generate", file, other, "-s", server.address, "-o", tmp_path / "out", "--no-progress")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-day-out", "a-day-out-2"]


def test_one_failing_story_leaves_the_other_alone(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text('title: Bad one\nframes: ["a lake"]\n', encoding="utf-8")
    info = error_details_pb2.ErrorInfo(reason="NOT_A_NUMBER")
    fail = failing(grpc.StatusCode.INTERNAL, "the story became not a number", info)

    def script(request: Request, context: Any) -> Iterator[Response]:
        return (fail if request.story.title == "Bad one" else whole_story)(request, context)

    server.script = script
    done = _run("generate", other, file, "-s", server.address, "-o", tmp_path / "out", "--no-progress")
    assert done.exit_code == 1
    assert done.stderr == f"{other}: the story became not a number\n"
    assert (tmp_path / "out" / "a-day-out" / "story.json").exists()


@pytest.mark.parametrize(
    ("field", "option", "place"),
    [
        ("story.frames[1].prompt", (), ":5:5: frames[1].prompt"),
        ("story.characters[0].description", (), ":2:14: characters[0].description"),
        ("story.settings.preview_interval", (), ":7:3: settings.preview_interval"),
        ("story.settings.preview_interval", ("--preview-interval", "9"), ": --preview-interval"),
        ("story.settings.width", (), ": settings.width"),
    ],
)
def test_what_the_server_refuses_is_shown_in_the_file(
    server: ScriptedServer, file: Path, tmp_path: Path, field: str, option: tuple[str, ...], place: str
) -> None:
    server.script = _violation(field, "is not [green]accepted[/green]")
    done = _run("generate", file, "-s", server.address, "-o", tmp_path / "out", *option)
    assert done.exit_code == 2
    assert done.stderr == f"{file}{place}: is not [green]accepted[/green]\n"
    assert not (tmp_path / "out").exists()


def test_bad_files_are_told_before_any_story_is_made(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("frames: [a]\nstile: x\n", encoding="utf-8")
    done = _run("generate", file, bad, tmp_path / "none.yaml", "-s", server.address, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        f'{bad}:2:1: stile: unknown key "stile"; did you mean "title"?',
        f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory",
    ]
    assert server.requests == []


@pytest.mark.parametrize("option", [("--steps", "0"), ("--guidance", "nan"), ("--seed", "-1"), ("--solver", "dimm")])
def test_options_that_make_no_sense_are_refused(file: Path, option: tuple[str, str]) -> None:
    done = _run("generate", file, *option)
    assert done.exit_code == 2
    assert option[0] in done.stderr


def test_unavailable_and_busy_servers_have_their_exit_code(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(50)  # longer than the command waits
    server.script = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry)
    done = _run("generate", file, "-s", server.address, "-o", tmp_path, "--no-progress")
    assert done.exit_code == 3
    assert "busy (the queue is full); try again in 50 s" in done.stderr
    server.stop()
    for command in (["generate", file, "-o", tmp_path], ["models"]):
        done = _run(*command, "-s", server.address)
        assert done.exit_code == 3
        assert "storyloom serve" in done.stderr


def test_timeout_says_what_to_do(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    server.script = until_cancelled(server)
    done = _run("generate", file, "-s", server.address, "-o", tmp_path, "--timeout", "0.5")
    assert done.exit_code == 1
    assert "--timeout" in done.stderr
    assert server.cancelled.wait(5)


def test_validate_models_health_and_version(server: ScriptedServer, file: Path) -> None:
    assert _run("validate", file).stdout == f"{file}: ok (frames: 2, characters: 1)\n"
    assert _run("--version").stdout == f"storyloom {__version__}\n"
    models = _run("models", "-s", server.address)
    assert models.exit_code == 0
    assert "mini" in models.stdout
    assert "128x128" in models.stdout
    ready = _run("health", "-s", server.address)
    assert (ready.exit_code, ready.stdout) == (0, "ready\n")
    server.set_ready(False)
    waiting = _run("health", "-s", server.address)
    assert (waiting.exit_code, waiting.stdout) == (3, "alive, but not ready\n")


def test_help_names_the_exit_codes() -> None:
    for arguments in (["--help"], ["generate", "--help"]):
        text = " ".join(re.sub(r"[│╭╰╮╯─]", " ", _run(*arguments).stdout).split())
        assert "2 a story file or story is wrong" in text
        assert "130 interrupted" in text


def test_slugs_are_safe_folder_names() -> None:
    assert slug("A day: in the/park!") == "a-day-in-the-park"
    assert slug("../../etc") == "etc"
    assert slug("Été à Zürich") == "été-à-zürich"
    assert slug("...") == ""
    assert len(slug("x" * 300)) == 80


def test_ctrl_c_cancels_the_story_and_exits_130(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    server.script = until_cancelled(server)
    process = subprocess.Popen(
        [sys.executable, "-m", "storyloom", "generate", str(file), "-s", server.address, "-o", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(_ROOT / "clients" / "python")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "accepted" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert server.cancels() == ["story-1"]
    assert server.cancelled.wait(5)


def test_serve_becomes_the_server(tmp_path: Path) -> None:
    package = tmp_path / "storyloom_server"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import json, os, sys\nprint(json.dumps([os.getpid(), sys.argv[1:]]))\n")
    command = [sys.executable, "-m", "storyloom", "serve", "--port", "0", "--help"]
    paths = os.pathsep.join([str(tmp_path), str(_ROOT / "clients" / "python")])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=30)
    assert json.loads(output) == [process.pid, ["--port", "0", "--help"]]


def test_serve_without_the_server_says_how_to_install_it() -> None:
    # None in sys.modules is Python's own mark for a package that is not there.
    without_server = "import sys; sys.modules['storyloom_server'] = None; from storyloom.cli import app; app(['serve'])"
    done = subprocess.run(
        [sys.executable, "-c", without_server],
        env=os.environ | {"PYTHONPATH": str(_ROOT / "clients" / "python")},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "pip install 'storyloom[server]'" in done.stderr


def _events() -> list[Any]:
    picture = Picture(png((1, 2, 3)), 32, 32)
    return [
        Accepted("s", 1, Settings(), 3, (1, 2)),
        Progress("s", 2, Stage.QUEUED, 0, 4, 2),
        Progress("s", 3, Stage.DENOISING, 2, 4, 0),
        Preview("s", 4, 0, 2, picture),
        Progress("s", 5, None, 4, 4, 0),
        FrameDone("s", 6, 1, picture, 1, "x"),
        Done("s", 7, Timings(0, 0, 0, 0, 1.5)),
    ]


def test_the_live_display_shows_frames_steps_stage_and_queue() -> None:
    seen: list[str] = []
    console = Console(width=100, force_terminal=True, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with LiveDisplay(console) as display:
        display.start("a [b] c", 2)
        for event in _events():
            display.event("a [b] c", event)
            console.print(display._progress)
            seen.append(console.export_text())
        display.start("other", 1)
        display.fail("other")
        console.print(display._progress)
        last = console.export_text()
    console.file.close()
    assert "a [b] c" in seen[0]
    for text, expected in zip(
        seen,
        ["3 in front", "queued, 2 in front", "step 2 of 4", "▒·", "working", "▒█", "done in 1.5 s"],
        strict=True,
    ):
        assert expected in text
    assert "failed" in last


def test_the_line_display_moves_in_quarters(capsys: pytest.CaptureFixture[str]) -> None:
    display = LineDisplay(Console(width=20))
    display.start("s", 1)
    for step in range(1, 101):
        display.event("s", Progress("s", step, Stage.DENOISING, step, 100, 0))
    assert capsys.readouterr().out.splitlines() == [f"s: step {step} of 100" for step in (25, 50, 75, 100)]
