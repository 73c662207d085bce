"""The commands on stories that the server has, on characters and on models."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from google.rpc import error_details_pb2
from typer.testing import CliRunner

from storyloom import StoryResult
from storyloom.cli import app
from storyloom.v1 import story_service_pb2 as pb
from tests.clients.scripted import ScriptedServer, until_cancelled
from tests.clients.scripts import Request, Response, failing, png, refusing, whole_story

_ROOT = Path(__file__).resolve().parents[2]
_STORY = """title: A day out
characters: {mia: a young woman, tom: an elderly man}
frames:
  - "{mia} is walking"
  - "{tom} is waving"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "day.yaml"
    path.write_text(_STORY, encoding="utf-8")
    return path


@pytest.fixture
def started(server: ScriptedServer, file: Path) -> str:
    """A story that was started and left, by its id."""
    done = _run(server, "generate", file, "--detach")
    assert (done.exit_code, done.stdout) == (0, "story-1\n"), done.output
    return "story-1"


def _run(server: ScriptedServer, *arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "-s", server.address])


def test_detached_stories_are_fetched_later(server: ScriptedServer, started: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = _run(server, "fetch", started, "--out", out)
    assert done.exit_code == 0, done.output
    scores = "mia 0.88, tom 0.88"
    assert done.stdout == f"{out / 'a-day-out'}: frames: 2, seconds: 8.2, consistency: {scores}\n"
    assert "a-day-out: frame 2 of 2 done" in done.stderr.splitlines()
    assert StoryResult.load(out / "a-day-out").seeds == (100, 101)
    record = json.loads((out / "a-day-out" / "story.json").read_text(encoding="utf-8"))
    assert record["consistency"] == {"mia": 0.875, "tom": 0.875}


def test_what_a_story_is_to_be_made_with_is_sent(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    wishes = ["--request-id", "mine", "--priority", "high", "--deadline", "30"]
    for more in (["--detach"], ["-o", tmp_path]):
        assert _run(server, "generate", file, *wishes, *more).exit_code == 0
    for request in (server.calls[0][1], server.requests[0]):
        assert request.request_id == "mine"
        assert (request.scheduling.priority, request.scheduling.deadline.seconds) == (3, 30)
    done = _run(server, "generate", file, file, "--request-id", "mine")
    assert done.exit_code == 2
    assert "several files" in " ".join(re.sub(r"[│╭╰╮╯─]", " ", done.stderr).split())


def test_watch_shows_the_story_to_its_end(server: ScriptedServer, started: str) -> None:
    done = _run(server, "watch", started)
    assert done.exit_code == 0
    assert done.stderr.splitlines()[0] == "a-day-out: accepted, 1 in front"
    assert done.stderr.splitlines()[-1] == "a-day-out: frame 1 of 2 done"


def test_watching_a_failed_story_says_why(server: ScriptedServer, started: str) -> None:
    info = error_details_pb2.ErrorInfo(reason="NAN")
    server.watch_script = failing(grpc.StatusCode.INTERNAL, "the story became not a number", info)
    done = _run(server, "watch", started)
    assert done.exit_code == 1
    assert done.stderr == "the story became not a number\n"


def test_status_and_list_show_states_and_scores(server: ScriptedServer, started: str) -> None:
    status = _run(server, "status", started)
    assert status.stdout.splitlines()[:4] == [
        "story: story-1",
        "state: queued",
        "title: A day out",
        "frames: 0 of 2 done",
    ]
    server.finish(started)
    server.stories[started].frames[0].reused = True
    server.stories[started].parent_story_id = "story-0"
    status = _run(server, "status", started)
    assert "consistency: mia 0.88, tom 0.88" in status.stdout.splitlines()
    assert "made from: story-0" in status.stdout.splitlines()
    assert re.search(r"1 +│ mia is walking +│ 100 +│ 8\.2 +│ yes", status.stdout)
    listed = _run(server, "list")
    assert re.search(r"story-1 +│ finished +│ A day out +│ 2 .*│ mia 0\.88, tom 0\.88", listed.stdout)
    assert "story-1" not in _run(server, "list", "--state", "failed").stdout
    server.stories[started].state = pb.STORY_STATE_FAILED
    server.stories[started].failure.CopyFrom(pb.StoryFailure(code=13, reason="NAN", message="not a number"))
    assert "failure: not a number (NAN)" in _run(server, "status", started).stdout


def test_list_is_cut_at_its_limit(server: ScriptedServer, file: Path) -> None:
    for _ in range(5):
        _run(server, "generate", file, "--detach")
    listed = _run(server, "list", "-n", "3")
    assert re.findall(r"story-\d", listed.stdout) == ["story-5", "story-4", "story-3"]


def test_cancel_tells_the_state(server: ScriptedServer, started: str) -> None:
    done = _run(server, "cancel", started)
    assert (done.exit_code, done.stdout) == (0, "story-1: cancelled\n")


def test_a_story_is_extended_by_a_file(server: ScriptedServer, started: str, tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(
        'characters: {ann: a girl, mia: a young woman}\nframes: ["{tom} meets {ann}", "{mia} is asleep"]\n',
        encoding="utf-8",
    )
    done = _run(server, "extend", started, more, "--out", tmp_path / "out", "--priority", "low")
    assert done.exit_code == 0, done.output
    assert "frames: 4" in done.stdout
    sent = next(request for method, request in server.calls if method == "ExtendStory")
    assert [who.name for who in sent.new_characters] == ["ann"]  # mia is there already, and looks the same
    assert [frame.prompt for frame in sent.frames] == ["{tom} meets {ann}", "{mia} is asleep"]
    assert sent.scheduling.priority == 1
    assert len(StoryResult.load(tmp_path / "out" / "a-day-out").pictures) == 4
    detached = _run(server, "extend", started, more, "--detach")
    assert detached.stdout == "story-3\n"


def test_what_is_wrong_with_an_extension_is_shown_in_its_file(
    server: ScriptedServer, started: str, tmp_path: Path
) -> None:
    more = tmp_path / "more.yaml"
    more.write_text('frames: ["{zoe} is here"]\n', encoding="utf-8")
    done = _run(server, "extend", started, more)
    assert done.exit_code == 2
    assert f'{more}:1:10: frames[0].prompt: no character is named "zoe"; known: mia, tom' in done.stderr
    more.write_text('characters:\n  mia: a robot\nframes: ["{mia}"]\n', encoding="utf-8")
    done = _run(server, "extend", started, more)
    assert done.exit_code == 2
    assert f"{more}:2:3: characters.mia: is a character of the story already" in done.stderr
    more.write_text('frames:\n  - "{mia} is here"\n', encoding="utf-8")
    bad = error_details_pb2.BadRequest.FieldViolation(field="frames[0].prompt", description="is too long")
    details = error_details_pb2.BadRequest(field_violations=[bad])
    server.refusals["ExtendStory"] = [refusing(grpc.StatusCode.INVALID_ARGUMENT, "bad", details)]
    done = _run(server, "extend", started, more)
    assert done.exit_code == 2
    assert done.stderr == f"{more}:2:5: frames[0].prompt: is too long\n"


def test_a_frame_is_made_again(server: ScriptedServer, started: str, tmp_path: Path) -> None:
    done = _run(server, "redo", started, 2, "--prompt", "{mia} is asleep", "--seed", 7, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    sent = next(request for method, request in server.calls if method == "RedoFrame")
    assert (sent.frame_index, sent.frame.prompt, sent.seed) == (1, "{mia} is asleep", 7)
    assert StoryResult.load(tmp_path / "out" / "a-day-out").story.captions[1] == "mia is asleep"
    assert _run(server, "redo", started, 1, "--detach").stdout == "story-3\n"
    assert _run(server, "redo", started, 0).exit_code == 2
    assert _run(server, "redo", started, 1, "--prompt", " ").exit_code == 2


def test_what_is_not_there_has_its_exit_code(server: ScriptedServer, tmp_path: Path) -> None:
    for command in (["status"], ["watch"], ["fetch"]):
        done = _run(server, *command, "story-9")
        assert (done.exit_code, done.stderr) == (2, "there is no story story-9\n")


def test_a_token_that_is_missing_or_weak_has_its_exit_code(server: ScriptedServer) -> None:
    server.refusals["ListModels"] = [refusing(grpc.StatusCode.UNAUTHENTICATED, "no token")]
    done = _run(server, "models")
    assert done.exit_code == 4
    assert "STORYLOOM_TOKEN" in done.stderr
    server.refusals["LoadModel"] = [refusing(grpc.StatusCode.PERMISSION_DENIED, "not an administrator")]
    assert _run(server, "models", "load", "big").exit_code == 4


def test_the_token_comes_from_option_or_environment_and_is_never_shown(server: ScriptedServer) -> None:
    _run(server, "models", "--token", "s3cret")
    assert server.metadata["authorization"] == "Bearer s3cret"
    environment = {"STORYLOOM_TOKEN": "s3cret", "STORYLOOM_SERVER": server.address}
    CliRunner().invoke(app, ["models"], env=environment)
    assert server.metadata["authorization"] == "Bearer s3cret"
    help_text = CliRunner().invoke(app, ["models", "--help"], env=environment).output
    refused = CliRunner().invoke(app, ["models", "-s", "storyloom.example:1"], env=environment)
    assert refused.exit_code == 2
    assert "--insecure-token" in refused.stderr
    assert "s3cret" not in help_text + refused.output


def test_characters_are_made_listed_shown_and_deleted(server: ScriptedServer, tmp_path: Path) -> None:
    picture = tmp_path / "mia.png"
    picture.write_bytes(png((1, 2, 3)))
    made = _run(server, "characters", "create", "mia", "-d", "a young woman", "-r", picture)
    assert (made.exit_code, made.stdout) == (0, "character-1\n")
    assert server.calls[-1][1].references == [picture.read_bytes()]
    assert re.search(r"character-1 +│ mia +│ a young woman +│ 1", _run(server, "characters", "list").stdout)
    assert "description: a young woman\nreferences: 1\n" in _run(server, "characters", "show", "character-1").stdout
    assert _run(server, "characters", "delete", "character-1").stdout == "character-1: deleted\n"
    assert _run(server, "characters", "show", "character-1").exit_code == 2
    assert _run(server, "characters", "create", "mia").exit_code == 2


def test_a_character_is_discovered(server: ScriptedServer) -> None:
    found = _run(server, "characters", "discover", "mia", "-d", "a girl", "--candidates", "8", "--request-id", "mine")
    assert (found.stdout, found.exit_code) == ("character-1\n", 0)
    assert "found in 16 candidates" in found.stderr
    sent = server.calls[-1][1]
    assert (sent.name, sent.description, sent.candidates, sent.request_id) == ("mia", "a girl", 8, "mine")
    wish = ("--loops", "2", "--negative-prompt", "ink", "--steps", "50", "--solver", "euler", "--guidance", "5")
    assert _run(server, "characters", "discover", "mia", "-d", "a girl", *wish).exit_code == 0
    sent = server.calls[-1][1]
    assert (sent.loops, sent.negative_prompt, sent.settings.steps, sent.settings.guidance_scale) == (2, "ink", 50, 5)
    assert _run(server, "characters", "discover", "mia").exit_code == 2


def test_models_are_loaded_unloaded_and_warmed(server: ScriptedServer) -> None:
    assert "big" in _run(server, "models", "load", "big").stdout
    assert _run(server, "models", "unload", "big").stdout == "big: unloaded\n"
    assert _run(server, "models", "warm").stdout == "the default model: warm, seconds: 2.5\n"
    assert [method for method, _ in server.calls] == ["LoadModel", "UnloadModel", "WarmModel"]
    assert _run(server, "models", "load").exit_code == 2
    misplaced = CliRunner().invoke(app, ["models", "-s", server.address, "load", "big"])
    assert misplaced.exit_code == 2
    assert "behind the command: storyloom models load" in misplaced.stderr


def test_models_are_added_by_the_models_own_libraries() -> None:
    command = [sys.executable, "-m", "storyloom", "models", "add", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "A diffusers folder, a single file, or a hub's id" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("command", "cancelled", "advice"),
    [
        (["watch", "story-1"], [], "the story goes on: storyloom fetch story-1"),
        (["fetch", "story-1"], [], "the story goes on: storyloom fetch story-1"),
        (["redo", "story-1", "1"], ["story-2"], "the server has been told to stop"),
    ],
)
def test_ctrl_c_cancels_what_the_command_made_and_nothing_else(
    server: ScriptedServer, started: str, tmp_path: Path, command: list[str], cancelled: list[str], advice: str
) -> None:
    stuck = until_cancelled(server)
    server.watch_script = lambda request, context: stuck(server.request_of(request.story_id), context)
    process = subprocess.Popen(
        [sys.executable, "-m", "storyloom", *command, "-s", server.address],
        env=os.environ | {"PYTHONPATH": str(_ROOT / "clients" / "python")},
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert process.stderr is not None
        assert "accepted" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert advice in rest
    assert "Traceback" not in rest
    assert server.cancels() == cancelled


def test_a_timeout_cancels_what_the_command_made(server: ScriptedServer, started: str) -> None:
    stuck = until_cancelled(server)
    server.watch_script = lambda request, context: stuck(server.request_of(request.story_id), context)
    done = _run(server, "redo", started, 1, "--timeout", "0.5")
    assert done.exit_code == 1
    assert "--timeout" in done.stderr
    assert server.cancels() == ["story-2"]


def test_a_lost_server_leaves_the_way_back(server: ScriptedServer, file: Path, tmp_path: Path) -> None:
    # Trailing metadata that forbids another try: the command would wait for a restart else.
    gone = refusing(grpc.StatusCode.UNAVAILABLE, "gone", trailers=[("grpc-retry-pushback-ms", "-1")])

    def script(request: Request, context: Any) -> Iterator[Response]:
        yield next(whole_story(request, context))
        gone(context)

    server.script = script
    done = _run(server, "generate", file, "-o", tmp_path)
    assert done.exit_code == 3
    assert "the story goes on: storyloom fetch story-1" in done.stderr
