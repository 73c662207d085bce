"""Whatever dies, hangs, fills up or goes bad: no accepted story is lost, and none is changed by another's misfortune.

Every test runs real processes. The pictures of the backend without a model depend on every step that was taken, so that
a step left out, repeated or taken from the wrong checkpoint shows in them.
"""

import io
import os
import re
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from PIL import Image

from storyloom.v1 import story_service_pb2 as pb
from tests.server.serving import (
    ServerProcess,
    create,
    ended,
    error_details,
    generate,
    gone,
    record,
    serving,
    story,
    until_step,
    wait_until,
    watch,
)

SLOW = {"STORYLOOM_TEST_STEP_SECONDS": "0.03"}
# Whatever goes wrong after some steps, there is a checkpoint to go on from.
CHECKPOINTS = ("--checkpoint-seconds", "0")
PROMPTS = ("a dog", "a cat", "a bird")
LONG = 60


@contextmanager
def slow_server(
    folder: Path, model: Path, *arguments: str, **environment: str
) -> Iterator[tuple[ServerProcess, grpc.Channel]]:
    with (
        serving(folder, model, *CHECKPOINTS, *arguments, environment={**SLOW, **environment}) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield server, channel


def pictures(channel: grpc.Channel, story_id: str) -> list[bytes]:
    """The pictures of a story that must end well."""
    found = ended(channel, story_id)
    assert found.state == pb.STORY_STATE_FINISHED, found.failure
    return [frame.image.png for frame in found.frames]


@pytest.fixture(scope="module")
def undisturbed(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Colours of ``load``'s stories where nothing goes wrong."""
    with slow_server(tmp_path_factory.mktemp("calm"), tiny_package) as (_, channel):
        return [colour(png) for story_id in load(channel) for png in pictures(channel, story_id)]


def load(channel: grpc.Channel) -> list[str]:
    """Three stories of different lengths that nobody reads."""
    return [create(channel, story(prompt, "a hat", steps=LONG + 7 * n, seed=n)) for n, prompt in enumerate(PROMPTS)]


def under_way(channel: grpc.Channel, story_ids: list[str]) -> None:
    """Waits until every story has taken some steps."""
    for story_id in story_ids:
        until_step(watch(channel, story_id), 12)


def colour(png: bytes) -> bytes:
    """A picture without what its file says of story and time."""
    with Image.open(io.BytesIO(png)) as image:
        return image.tobytes()[:3]


def colours(channel: grpc.Channel, story_ids: list[str]) -> list[bytes]:
    return [colour(png) for story_id in story_ids for png in pictures(channel, story_id)]


def engine_pids(server: ServerProcess) -> list[int]:
    return [int(pid) for pid in re.findall(r"engine process started pid=(\d+)", server.log)]


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_to_the_engine(
    tiny_package: Path, tmp_path: Path, undisturbed: list[bytes], number: signal.Signals, loaded: bool
) -> None:
    with slow_server(tmp_path, tiny_package) as (server, channel):
        story_ids = load(channel) if loaded else []
        under_way(channel, story_ids)
        os.kill(server.engine_pid, number)
        if number is signal.SIGKILL:
            wait_until(lambda: server.log.count("engine ready") == 2, 60)
        story_ids = story_ids or load(channel)
        assert colours(channel, story_ids) == undisturbed
        assert len(engine_pids(server)) == (2 if number is signal.SIGKILL else 1)
        assert server.terminate() == 0
        assert all(gone(pid) for pid in engine_pids(server))


@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "loaded"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_to_the_server(
    tiny_package: Path, tmp_path: Path, undisturbed: list[bytes], number: signal.Signals, loaded: bool
) -> None:
    state = ("--state-folder", str(tmp_path / "state"))
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with slow_server(tmp_path / "first", tiny_package, *state, "--drain-seconds", "0.1") as (server, channel):
        story_ids = load(channel) if loaded else []
        under_way(channel, story_ids)
        engine_pid = server.engine_pid
        server.process.send_signal(number)
        assert server.process.wait(60) == (-signal.SIGKILL if number is signal.SIGKILL else 0)
        wait_until(lambda: gone(engine_pid), 20)
    with slow_server(tmp_path / "second", tiny_package, *state) as (server, channel):
        story_ids = story_ids or load(channel)
        assert colours(channel, story_ids) == undisturbed
        if loaded:
            assert server.log.count("story adopted") == 3
        for story_id in story_ids:
            numbers = [event.sequence for event in watch(channel, story_id)]
            assert numbers == sorted(set(numbers))


def test_a_stream_is_resumed_over_a_restart_of_the_server(tiny_package: Path, tmp_path: Path) -> None:
    state = ("--state-folder", str(tmp_path / "state"))
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with slow_server(tmp_path / "first", tiny_package, *state) as (server, channel):
        call = generate(channel, story("a dog", "a cat", steps=LONG))
        seen = []
        for event in call:
            seen.append(event)
            if event.progress.step == 20:
                break
        server.process.kill()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with slow_server(tmp_path / "second", tiny_package, *state) as (_, channel):
        rest = list(watch(channel, seen[0].story_id, after=seen[-1].sequence))
    # What was told before is not told again, and frames and the end are all there.
    numbers = [event.sequence for event in seen + rest]
    assert numbers == sorted(set(numbers))
    assert [event.frame.frame_index for event in rest if event.HasField("frame")] == [0, 1]
    assert rest[-1].HasField("done")
    # It went on from a checkpoint, not from the start.
    assert min(event.progress.step for event in rest if event.progress.step) >= 11


@pytest.mark.parametrize("stage", ["encode", "step", "decode"])
def test_a_story_that_kills_the_engine_is_given_up_and_its_neighbours_are_not(
    tiny_package: Path, tmp_path: Path, undisturbed: list[bytes], stage: str
) -> None:
    with slow_server(tmp_path, tiny_package) as (server, channel):
        story_ids = load(channel)
        under_way(channel, story_ids)
        poison = create(channel, story(f"die-{stage}", steps=3))
        failed = ended(channel, poison, 120)
        assert (failed.state, failed.failure.reason) == (pb.STORY_STATE_FAILED, "ENGINE_CRASHED")
        assert colours(channel, story_ids) == undisturbed
        assert len(engine_pids(server)) == 4


def test_an_engine_that_hangs_is_restarted(tiny_package: Path, tmp_path: Path, undisturbed: list[bytes]) -> None:
    with slow_server(tmp_path, tiny_package, "--hang-seconds", "2") as (server, channel):
        story_ids = load(channel)
        under_way(channel, story_ids)
        stuck = create(channel, story("hang", steps=5))
        assert ended(channel, stuck, 120).failure.reason == "ENGINE_CRASHED"
        assert colours(channel, story_ids) == undisturbed
        assert server.log.count("the engine hangs; it is killed") == 3


def test_an_engine_that_keeps_dying_ends_the_server_and_no_story(tiny_package: Path, tmp_path: Path) -> None:
    state = ("--state-folder", str(tmp_path / "state"))
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with slow_server(tmp_path / "first", tiny_package, *state, "--max-restarts", "0") as (server, channel):
        story_id = create(channel, story("a dog", steps=LONG))
        until_step(watch(channel, story_id))
        os.kill(server.engine_pid, signal.SIGKILL)
        assert server.process.wait(60) == 1
    with slow_server(tmp_path / "second", tiny_package, *state) as (_, channel):
        assert len(pictures(channel, story_id)) == 1


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("raise-encode", "ENGINE_ERROR"),
        ("raise-step", "ENGINE_ERROR"),
        ("raise-decode", "ENGINE_ERROR"),
        ("raise-preview", "ENGINE_ERROR"),
        ("diverge", "STORY_DIVERGED"),
    ],
)
def test_a_bad_story_fails_alone(
    tiny_package: Path, tmp_path: Path, undisturbed: list[bytes], word: str, reason: str
) -> None:
    with slow_server(tmp_path, tiny_package) as (_, channel):
        story_ids = load(channel)
        under_way(channel, story_ids)
        bad = ended(channel, create(channel, story(f"a {word} dog", steps=9, preview_interval=1)))
        assert bad.failure.reason == reason
        with pytest.raises(grpc.RpcError) as caught:
            list(watch(channel, bad.story_id))
        assert error_details(caught.value)["ErrorInfo"].reason == reason
        assert colours(channel, story_ids) == undisturbed


def test_out_of_memory_makes_batches_smaller(tiny_package: Path, tmp_path: Path, undisturbed: list[bytes]) -> None:
    """Two of the stories fit a step, three do not; one of five frames does not fit at all."""
    with slow_server(tmp_path, tiny_package, STORYLOOM_TEST_MEMORY_ROWS="9") as (server, channel):
        story_ids = load(channel)
        too_large = ended(channel, create(channel, story(*["a dog"] * 5, steps=2)))
        assert too_large.failure.reason == "OUT_OF_MEMORY"
        assert too_large.failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert colours(channel, story_ids) == undisturbed
        # Learned, not tried again and again.
        assert server.log.count("a batch step ran out of memory") < 10


def test_a_reader_that_reads_nothing_holds_nobody_up(
    tiny_package: Path, tmp_path: Path, undisturbed: list[bytes]
) -> None:
    with slow_server(tmp_path, tiny_package) as (_, channel):
        lazy = generate(channel, story(*["a dog"] * 8, steps=100, preview_interval=1))
        story_id = next(lazy).story_id
        assert colours(channel, load(channel)) == undisturbed
        assert len(pictures(channel, story_id)) == 8
        rest = list(lazy)
        assert [event.frame.frame_index for event in rest if event.HasField("frame")] == list(range(8))
        assert rest[-1].HasField("done")


def test_a_full_disk_makes_stories_wait(tiny_package: Path, tmp_path: Path, undisturbed: list[bytes]) -> None:
    with slow_server(tmp_path, tiny_package) as (server, channel):
        story_ids = load(channel)
        under_way(channel, story_ids)
        pid = server.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(grpc.RpcError) as caught:
            create(channel, story("a dog"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        details = error_details(caught.value)
        # SQLite calls a file that may not grow an I/O error; a disk without space would be STORAGE_FULL.
        assert details["ErrorInfo"].reason in ("STORAGE_FULL", "STORE_UNAVAILABLE")
        assert "RetryInfo" in details
        time.sleep(4)  # Long enough for every story to have taken all its steps.
        assert all(record(channel, story_id).state == pb.STORY_STATE_RUNNING for story_id in story_ids)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        assert colours(channel, story_ids) == undisturbed


def test_a_locked_database_makes_stories_wait(tiny_package: Path, tmp_path: Path, undisturbed: list[bytes]) -> None:
    with slow_server(tmp_path, tiny_package) as (_, channel):
        story_ids = load(channel)
        under_way(channel, story_ids)
        locking = sqlite3.connect(tmp_path / "state" / "stories.db")
        locking.execute("BEGIN IMMEDIATE")
        with pytest.raises(grpc.RpcError) as caught:
            create(channel, story("a dog"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error_details(caught.value)["ErrorInfo"].reason == "STORE_UNAVAILABLE"
        locking.rollback()
        locking.close()
        assert colours(channel, story_ids) == undisturbed


def test_no_process_outlives_its_server(tiny_package: Path, tmp_path: Path) -> None:
    with slow_server(tmp_path, tiny_package) as (server, channel):
        until_step(watch(channel, create(channel, story("a dog", steps=LONG))))
        server.process.kill()
        wait_until(lambda: gone(server.engine_pid), 20)
        left = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        assert str(tmp_path) not in left
