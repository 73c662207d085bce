"""Whole servers on one PostgreSQL and one folder of pictures: each answers for every story, and takes over others."""

import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from PIL import Image

from storyloom.v1 import story_service_pb2 as pb
from tests.server.databases import PostgreSQL
from tests.server.serving import (
    ServerProcess,
    create,
    ended,
    record,
    serving,
    stories,
    story,
    until_step,
    wait_until,
    watch,
)


class Replicas:
    """Servers that share everything but their state folders."""

    def __init__(self, folder: Path, model: Path, database_url: str) -> None:
        self._folder = folder
        self._model = model
        self._shared = ("--database-url", database_url, "--pictures-url", str(folder / "pictures"))

    @contextmanager
    def start(self, name: str, step_seconds: float = 0.1) -> Iterator[tuple[ServerProcess, grpc.Channel]]:
        """A server that leaves at once when it is told to."""
        files = self._folder / name
        files.mkdir()
        slow = {"STORYLOOM_TEST_STEP_SECONDS": str(step_seconds)}
        with (
            serving(files, self._model, *self._shared, "--drain-seconds", "0", environment=slow) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            yield server, channel


@pytest.fixture
def replicas(tiny_package: Path, tmp_path: Path, postgresql_server: PostgreSQL) -> Replicas:
    return Replicas(tmp_path, tiny_package, postgresql_server.new_database())


def pixels(found: pb.StoryRecord) -> list[bytes]:
    """The pictures of a story that must have ended well, without what their files say of story and time."""
    assert found.state == pb.STORY_STATE_FINISHED, found.failure
    return [Image.open(io.BytesIO(frame.image.png)).tobytes() for frame in found.frames]


def test_every_replica_answers_for_every_story(replicas: Replicas) -> None:
    with replicas.start("first", step_seconds=0.3) as (_, first), replicas.start("second") as (_, second):
        done = create(first, story("a dog", "a cat", steps=9))
        kinds = [event.WhichOneof("event") for event in watch(second, done)]
        assert kinds == ["accepted", "frame", "frame", "done"]
        assert record(second, done, images=True) == record(first, done, images=True)

        unwanted = create(first, story("a dog", steps=100, seed=1))
        until_step(watch(first, unwanted), 2)
        stories(second).CancelStory(pb.CancelStoryRequest(story_id=unwanted))
        assert ended(first, unwanted).state == pb.STORY_STATE_CANCELLED


@pytest.mark.slow  # Leases take their time to run out.
def test_stories_of_a_dead_and_of_a_leaving_replica_are_taken_over(replicas: Replicas) -> None:
    asked = story("a dog", "a cat", steps=100)
    with (
        replicas.start("first") as (dying, first),
        replicas.start("second") as (second_server, second),
        replicas.start("third") as (third_server, third),
    ):
        undisturbed = pixels(ended(third, create(third, asked)))
        story_id = create(first, asked)
        until_step(watch(first, story_id), 20)
        dying.process.kill()

        others = [(second_server, second), (third_server, third)]
        wait_until(lambda: any("story adopted" in server.log for server, _ in others), 90)
        others.sort(key=lambda each: "story adopted" not in each[0].log)
        (leaving, _), (heir, channel) = others
        leaving.process.send_signal(signal.SIGTERM)
        assert leaving.process.wait(60) == 0

        assert pixels(ended(channel, story_id)) == undisturbed
        assert heir.log.count("story adopted") == 1
        numbers = [event.sequence for event in watch(channel, story_id)]
        assert numbers == sorted(set(numbers))
