"""Starts real servers as real processes, and talks to them over real channels."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from storyloom.v1 import story_pb2, story_service_pb2, story_service_pb2_grpc

ROOT = Path(__file__).parents[2]
NULL_BACKEND = "tests.server.null_backend:NullBackend"
FOLDERS = ("kernels", "model", "training", "export", "server", "clients/python", ".")
START_SECONDS = 240.0  # On a busy machine the imports alone take minutes.


@dataclass
class ServerProcess:
    """A running ``python -m storyloom_server``."""

    process: subprocess.Popen[str]
    ready_file: Path
    log_file: Path

    @property
    def address(self) -> str:
        return self.ready_file.read_text().strip()

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def engine_pid(self) -> int:
        found = re.search(r"engine process started pid=(\d+)", self.log)
        assert found is not None
        return int(found[1])

    def wait_ready(self) -> None:
        wait_until(lambda: self.ready_file.exists() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.log

    def terminate(self, seconds: float = 60.0) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def serving(
    folder: Path,
    model: Path,
    *arguments: str,
    backend: str | None = NULL_BACKEND,
    environment: Mapping[str, str] | None = None,
    wait: bool = True,
) -> Iterator[ServerProcess]:
    """A server of ``model`` on a free port; its files go to ``folder``. It is gone afterwards, whatever happened."""
    ready_file, log_file = folder / "ready", folder / "server.log"
    command = [sys.executable, "-m", "storyloom_server", "--model", str(model)]
    command += [] if "--port" in arguments else ["--port", "0"]
    command += [] if "--state-folder" in arguments else ["--state-folder", str(folder / "state")]
    command += ["--ready-file", str(ready_file), *arguments]
    command += ["--backend", backend] if backend else ["--threads", "1"]
    paths = os.pathsep.join(str(ROOT / name) for name in FOLDERS)
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
    server = ServerProcess(process, ready_file, log_file)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Polls until ``condition()`` holds; fails the test when it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """True when there is no such process, or only its remains."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" in status.read_text()


def story(*prompts: str, steps: int = 4, seed: int | None = 7, **settings: Any) -> story_pb2.Story:
    """A story without characters, one frame a prompt."""
    return story_pb2.Story(
        frames=[story_pb2.Frame(prompt=prompt) for prompt in prompts or ("a dog", "a cat")],
        settings=story_pb2.Settings(steps=steps, seed=seed, **settings),
    )


def generate(channel: grpc.Channel, asked: story_pb2.Story, timeout: float = 90.0, **fields: Any) -> Any:
    """Starts a story; the call is an iterator of its events. Untyped, since the stubs know too little of calls."""
    request = story_service_pb2.GenerateStoryRequest(story=asked, **fields)
    return stories(channel).GenerateStory(request, timeout=timeout)


def create(channel: grpc.Channel, asked: story_pb2.Story, **fields: Any) -> str:
    """Starts a story that nobody reads; returns its id."""
    request = story_service_pb2.CreateStoryRequest(story=asked, **fields)
    return str(stories(channel).CreateStory(request, timeout=30).story.story_id)


def stories(channel: grpc.Channel) -> Any:
    """The stub of the story service, untyped."""
    return story_service_pb2_grpc.StoryServiceStub(channel)


def watch(channel: grpc.Channel, story_id: str, after: int = 0, timeout: float = 90.0) -> Any:
    """Reads a story's events, old and new."""
    request = story_service_pb2.WatchStoryRequest(story_id=story_id, after_sequence=after)
    return stories(channel).WatchStory(request, timeout=timeout)


def record(channel: grpc.Channel, story_id: str, *, images: bool = False) -> story_service_pb2.StoryRecord:
    """What the server knows of a story."""
    request = story_service_pb2.GetStoryRequest(story_id=story_id, include_images=images)
    found: story_service_pb2.StoryRecord = stories(channel).GetStory(request, timeout=30).story
    return found


def ended(channel: grpc.Channel, story_id: str, seconds: float = 60.0) -> story_service_pb2.StoryRecord:
    """Waits until a story has ended, however it did, and returns it with its pictures."""
    open_states = (story_service_pb2.STORY_STATE_QUEUED, story_service_pb2.STORY_STATE_RUNNING)
    wait_until(lambda: record(channel, story_id).state not in open_states, seconds)
    return record(channel, story_id, images=True)


def until_step(call: Any, step: int = 1) -> str:
    """Reads until the story has taken so many steps; returns its id."""
    for event in call:
        if event.progress.step >= step:
            return str(event.story_id)
    raise AssertionError(f"the story never took step {step}")


def error_details(error: Any) -> dict[str, Any]:
    """Details of a failed call by their type's short name."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    details: dict[str, Any] = {}
    for packed in status.details:
        message = getattr(error_details_pb2, packed.type_url.rsplit(".", 1)[1])()
        assert packed.Unpack(message)
        details[type(message).__name__] = message
    return details
