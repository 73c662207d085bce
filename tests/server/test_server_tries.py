"""Stories with a second pass through a server: frames that are made again because somebody was missing, characters that
join, and the cost by the server's own count.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from storyloom.v1 import story_pb2 as pb
from storyloom.v1 import story_service_pb2 as stories_pb
from storyloom_model.denoiser import Denoiser
from storyloom_server.catalog import ModelCatalog
from storyloom_server.engine.backend import FindsCharacters
from storyloom_server.scheduler import Phase
from storyloom_server.tries import Try, longer, try_again
from tests.server.casts import GREEN, PINK, cast_story, free_port, picture, pixels
from tests.server.null_backend import NullBackend
from tests.server.planning import accepted
from tests.server.serving import ServerProcess, create, ended, generate, serving, stories, until_step, watch

STEP = 3533


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(identity_package: Path, port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("tries"), identity_package, "--metrics-port", str(port)) as running:
        yield running


def story(*prompts: str, steps: int = 5, **wish: Any) -> pb.Story:
    """Of Mia, with the seeds 100, 101, ...; in a frame with ``hidden-from-N`` she is missed below that seed."""
    asked = cast_story(picture(GREEN), steps=steps, frames=0)
    asked.frames.extend(pb.Frame(prompt=prompt, seed=100 + index) for index, prompt in enumerate(prompts))
    asked.settings.redenoising.CopyFrom(pb.Redenoising(**wish))
    return asked


def frames(events: Sequence[Any]) -> list[stories_pb.FrameResult]:
    found = [event.frame for event in events if event.WhichOneof("event") == "frame"]
    return sorted(found, key=lambda frame: frame.frame_index)


def shown(events: Sequence[Any]) -> list[bytes]:
    return [pixels(frame.image.png) for frame in frames(events)]


def test_a_frame_is_made_again_until_everybody_is_found(channel: grpc.Channel) -> None:
    """The third try finds her; the other frames stay as they were, and the picture says its seed."""
    asked = story("{mia} walks", "{mia} is hidden-from-5000", "{mia} sits", retries=3)
    events = list(generate(channel, asked))
    made = frames(events)
    assert [frame.seed for frame in made] == [100, 101 + 2 * STEP, 102]
    assert [list(frame.missing_characters) for frame in made] == [[], [], []]
    assert events[0].accepted.frame_seeds == [100, 101, 102]
    assert events[0].accepted.settings.redenoising.retries == 3
    assert f"{101 + 2 * STEP}".encode() in made[1].image.png  # In what the file says of itself.
    progress = [event.progress for event in events if event.HasField("progress")]
    assert sorted({each.steps for each in progress}) == [9, 18, 27]
    counts = [each.step for each in progress]
    assert counts == sorted(counts)
    assert counts[-1] == 27

    asked.settings.redenoising.retries = 0
    once = list(generate(channel, asked))
    assert [list(frame.missing_characters) for frame in frames(once)] == [[], ["mia"], []]
    assert [frame.seed for frame in frames(once)] == [100, 101, 102]
    changed = [one != other for one, other in zip(shown(events), shown(once), strict=True)]
    assert changed == [False, True, False]


def test_where_nobody_is_found_the_first_try_counts(channel: grpc.Channel) -> None:
    asked = story("{mia} is hidden-from-90000", retries=2)
    events = list(generate(channel, asked))
    (made,) = frames(events)
    assert (made.seed, list(made.missing_characters)) == (100, ["mia"])
    asked.settings.redenoising.retries = 0
    assert shown(events) == shown(list(generate(channel, asked)))


def test_a_new_try_takes_after_the_finished_frames(channel: grpc.Channel) -> None:
    """As a frame that is redone does: with that seed it is the same picture."""
    tried = list(generate(channel, story("{mia} walks", "{mia} is hidden-from-3000", retries=1)))
    parent = ended(channel, create(channel, story("{mia} walks", "{mia} is hidden-from-3000")))
    request = stories_pb.RedoFrameRequest(story_id=parent.story_id, frame_index=1, seed=101 + STEP)
    redone = list(watch(channel, stories(channel).RedoFrame(request, timeout=30).story.story_id))
    assert shown(redone) == shown(tried)


def test_a_frame_keeps_its_seed_in_stories_that_go_on(channel: grpc.Channel) -> None:
    parent = create(channel, story("{mia} is hidden-from-3000", retries=1))
    (first,) = frames(list(watch(channel, parent)))
    request = stories_pb.ExtendStoryRequest(story_id=parent, frames=[pb.Frame(prompt="{mia} is hidden-from-9", seed=5)])
    child = list(watch(channel, stories(channel).ExtendStory(request, timeout=30).story.story_id))
    taken, new = frames(child)
    assert (taken.seed, taken.reused, pixels(taken.image.png)) == (100 + STEP, True, pixels(first.image.png))
    assert new.seed == 5 + STEP  # The wish is the parent's.


def test_tries_come_to_the_same_after_a_restart(channel: grpc.Channel, identity_package: Path, tmp_path: Path) -> None:
    """The first server and its engine are killed in the second try of the second of two such frames."""
    prompts = ("{mia} walks", "{mia} is hidden-from-3000", "{mia}, hidden-from-7000", "{mia} sits")
    asked = story(*prompts, steps=5, retries=3)
    undisturbed = list(generate(channel, asked))
    assert [frame.seed for frame in frames(undisturbed)] == [100, 101 + STEP, 102 + 2 * STEP, 103]
    state = ("--state-folder", str(tmp_path / "state"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    slow = {"STORYLOOM_TEST_STEP_SECONDS": "0.1"}
    with (
        serving(tmp_path / "first", identity_package, *state, environment=slow) as first,
        grpc.insecure_channel(first.address) as doomed,
    ):
        story_id = until_step(generate(doomed, asked), 9 + 9 + 9 + 2)
        first.process.kill()
    with (
        serving(tmp_path / "second", identity_package, *state) as second,
        grpc.insecure_channel(second.address) as later,
    ):
        resumed = list(watch(later, story_id))
        assert "story adopted" in second.log
    assert [frame.seed for frame in frames(resumed)] == [frame.seed for frame in frames(undisturbed)]
    assert shown(resumed) == shown(undisturbed)


def test_a_character_may_join_a_story_later(channel: grpc.Channel) -> None:
    """Bo comes in an extension with references of his own: they change the new frame, and no other."""
    parent = create(channel, story("{mia} walks", "{mia} sits"))
    before = ended(channel, parent)

    def extended(*bo: bytes) -> list[bytes]:
        joining = pb.Character(name="bo", description="an old man")
        joining.references.extend(pb.Reference(picture=each) for each in bo)
        request = stories_pb.ExtendStoryRequest(
            story_id=parent, frames=[pb.Frame(prompt="{mia} meets {bo}", seed=9)], new_characters=[joining]
        )
        return shown(list(watch(channel, stories(channel).ExtendStory(request, timeout=30).story.story_id)))

    made = [extended(picture(GREEN)), extended(picture(PINK)), extended()]
    assert len(before.frames) == 2
    assert made[0][:2] == made[1][:2] == made[2][:2]
    assert len({each[2] for each in made}) == 3


def rows(port: int) -> float:
    """Rows of UNet calls that the server counts."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("storyloom_batch_rows_sum"))


@pytest.mark.parametrize("steps", [5, 25])
def test_a_second_pass_costs_no_more_than_its_characters(channel: grpc.Channel, port: int, steps: int) -> None:
    """(1 - start / steps) times the characters of one pass, by the server's own count: the paper's cost."""

    def cost(asked: pb.Story) -> float:
        before = rows(port)
        list(generate(channel, asked))
        return rows(port) - before

    asked = story("{mia} walks", "{mia} and {bo} sit", "a dog", steps=steps)
    asked.characters.add(name="bo", description="an old man", references=[pb.Reference(picture=picture())])
    both = cost(asked)
    everywhere = pb.Story()
    everywhere.CopyFrom(asked)
    for frame in everywhere.frames:
        frame.prompt = "{mia} and {bo} walk"
    most = cost(everywhere)
    for each in (asked, everywhere):
        each.settings.redenoising.enabled = False
    one_pass = cost(asked)
    assert one_pass == cost(everywhere) == steps * 3 * 2  # Frames and guidance branches.
    again = 1 - 0.2
    assert both - one_pass == again * steps * 3 * 2  # Mia in two frames, Bo in one.
    assert most - one_pass == again * 2 * one_pass


def test_admission_knows_of_a_try_that_has_begun(identity_package: Path) -> None:
    taken = accepted(story("{mia} walks", "{mia} sits"), ModelCatalog.load([identity_package]))
    again = try_again(taken, 1, 2, {0})
    assert (again.frames, again.window.anchors) == ((1,), (0,))
    assert [frame.seed for frame in again.job(taken).frames] == [101 + 2 * STEP]
    assert Try(again.window, 1).seed(2**64 - 1) == STEP - 1
    before = taken.spec(None)
    after = longer(before, taken, again)
    assert (before.shape.steps, before.shape.phases) == (9, (Phase(9, (2,)),))
    assert after.shape.steps == 18
    assert after.shape.phases == (Phase(9, (2,)), Phase(5, (2,)), Phase(4, (1,)))
    assert replace(after, shape=before.shape) == before


def test_the_torch_backend_knows_who_is_missing() -> None:
    assert issubclass(Denoiser, FindsCharacters)
    assert issubclass(NullBackend, FindsCharacters)
