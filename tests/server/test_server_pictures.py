"""The real model behind the real server: a story's pictures do not depend on what else the server is doing."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from storyloom import Consistency, FreeU, Progress, Settings, Story, StoryClient, StoryResult
from storyloom.v1 import story_pb2 as pb
from storyloom.v1 import story_service_pb2 as service_pb
from storyloom_model.methods.names import METHODS as ALL_METHODS
from storyloom_model.methods.rounds import ROUNDS
from tests.server.serving import ServerProcess, create, ended, generate, serving, stories, until_step, watch

METHODS = tuple(method for method in ALL_METHODS if method != ROUNDS)
"""Those that any model can."""


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("real"), tiny_package, "--max-rows", "16", backend=None) as running:
        yield running


def story(seed: int, steps: int, *prompts: str, **settings: Any) -> pb.Story:
    return pb.Story(
        characters=[pb.Character(name="mia", description="a girl with red hair")],
        frames=[pb.Frame(prompt=prompt) for prompt in prompts],
        settings=pb.Settings(seed=seed, steps=steps, **settings),
    )


def pictures(events: Any) -> NDArray[np.int16]:
    """Pictures of a story in frame order, [frames, height, width, 3]."""
    frames = {event.frame.frame_index: event.frame.image.png for event in events if event.HasField("frame")}
    return np.stack([np.asarray(Image.open(io.BytesIO(frames[index]))) for index in sorted(frames)]).astype(np.int16)


def test_neighbours_that_come_and_go_do_not_change_a_story(channel: grpc.Channel) -> None:
    first = story(7, 24, "{mia} walks in the park", "{mia} sits", "a dog")
    second = story(8, 9, "{mia} on a dog", "an old man", guidance_scale=2.0, solver=pb.SOLVER_EULER)
    alone = [pictures(generate(channel, asked)) for asked in (first, second)]

    running = generate(channel, first)
    seen = [next(running)]
    while seen[-1].progress.step < 2:
        seen.append(next(running))
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(lambda: list(generate(channel, second)))
        left = generate(channel, story(9, 50, "{mia}"))
        next(left)
        while next(left).progress.step < 2:
            pass
        left.cancel()
        seen += running
        together = [pictures(seen), pictures(beside.result(timeout=30))]

    for apart, joined in zip(alone, together, strict=True):
        assert np.abs(apart - joined).max() <= 1
        assert len({frame.tobytes() for frame in apart}) == len(apart)


def test_seed_decides_the_pictures(channel: grpc.Channel) -> None:
    same, again, other = (
        pictures(generate(channel, story(seed, 3, "{mia} walks", "{mia} sits"))) for seed in (1, 1, 2)
    )
    assert np.array_equal(same, again)
    assert np.abs(same - other).max() > 8


def test_a_frame_keeps_its_seed_when_frames_are_taken_from_its_story(channel: grpc.Channel) -> None:
    events = list(generate(channel, story(5, 2, "{mia} walks", "a dog")))
    seeds = events[0].accepted.frame_seeds
    separate = story(0, 2, "a dog", consistency=pb.Consistency(enabled=False))
    separate.frames[0].seed = seeds[1]
    together = story(5, 2, "{mia} walks", "a dog", consistency=pb.Consistency(enabled=False))
    assert np.abs(pictures(generate(channel, together))[1] - pictures(generate(channel, separate))[0]).max() <= 1


@pytest.mark.parametrize("adapter", ["amsa-mask", "amsa", "none"])
@pytest.mark.parametrize("solver", [pb.SOLVER_DDIM, pb.SOLVER_EULER, pb.SOLVER_UNIPC])
def test_every_solver_and_adapter_makes_pictures_and_previews(
    channel: grpc.Channel, adapter: str, solver: pb.Solver
) -> None:
    asked = story(
        3,
        3,
        "{mia} walks",
        "{mia} sits",
        solver=solver,
        consistency=pb.Consistency(adapter=adapter),
        preview_interval=1,
        width=96,
        height=64,
    )
    events = list(generate(channel, asked))
    assert pictures(events).shape == (2, 64, 96, 3)
    previews = [event.preview for event in events if event.HasField("preview")]
    assert [(preview.step, preview.frame_index) for preview in previews] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(preview.image.png.startswith(b"\x89PNG") for preview in previews)


def test_each_story_method_makes_its_own_pictures_and_is_told(channel: grpc.Channel) -> None:
    """All at once, so that those that may share steps do; frames on their own are FastComposer's without references."""

    def made(consistency: pb.Consistency) -> tuple[str, NDArray[np.int16]]:
        events = list(generate(channel, story(3, 4, "{mia} walks", "{mia} sits", consistency=consistency)))
        return events[0].accepted.settings.consistency.method, pictures(events)

    wishes = [pb.Consistency(method=method) for method in ("", *METHODS)] + [pb.Consistency(enabled=False)]
    with ThreadPoolExecutor() as pool:
        names, shown = zip(*pool.map(made, wishes), strict=True)
    assert names == ("storynizor", *METHODS, "storynizor")
    default, storynizor, *others, off = shown
    assert np.array_equal(default, storynizor)
    assert not any(np.array_equal(default, other) for other in others)
    assert np.array_equal(others[METHODS.index("fastcomposer") - 1], off)


def test_a_story_with_feature_injection_is_made_twice(server: ServerProcess) -> None:
    """Twice the steps in its progress, other pictures, and what was used comes back."""
    asked = Story(
        characters={"mia": "a girl with red hair"},
        frames=["{mia} walks", "{mia} sits"],
        settings=Settings(steps=4, seed=3, consistency=Consistency(method="consistory")),
    )
    changes: list[dict[str, Any]] = [
        {}, {"consistency": {"feature_injection": True}}, {"freeu": True},
        {"consistency": {"feature_injection": True}, "freeu": {"b1": 1.3}},
    ]  # fmt: skip
    made, steps = list[StoryResult](), list[int]()
    with StoryClient(server.address) as client:
        for change in changes:
            seen: list[int] = []
            result = client.generate(
                asked.with_settings(**change),
                on_event=lambda event, seen=seen: seen.append(event.steps) if isinstance(event, Progress) else None,  # type: ignore[misc]
            )
            made.append(result)
            steps.append(max(seen))
    assert steps == [4, 8, 4, 8]
    shown = [tuple(picture.png for picture in one.pictures) for one in made]
    assert len(set(shown)) == len(shown)
    assert (made[0].settings.consistency.feature_injection, made[0].settings.freeu) == (None, None)
    assert made[3].settings.consistency.feature_injection
    assert made[3].settings.freeu == FreeU(enabled=True, b1=1.3, b2=1.2, s1=0.6, s2=0.4)


@pytest.mark.parametrize(("solver", "method"), [(pb.SOLVER_DDIM, ""), (pb.SOLVER_UNIPC, "consistory")])
def test_a_story_that_two_servers_made_is_bitwise_that_of_one(
    channel: grpc.Channel, tiny_package: Path, tmp_path: Path, solver: pb.Solver, method: str
) -> None:
    """The first server and its engine are killed in the middle of the second window."""
    steps = 30  # The window left over has to outlast what a busy machine takes to notice and to kill.
    wish = pb.Consistency(method=method)
    asked = story(11, steps, *["{mia} walks", "{mia} sits", "a dog"] * 4, solver=solver, consistency=wish)
    undisturbed = pictures(generate(channel, asked))
    state = ("--state-folder", str(tmp_path / "state"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with (
        serving(tmp_path / "first", tiny_package, *state, "--checkpoint-seconds", "0", backend=None) as first,
        grpc.insecure_channel(first.address) as doomed,
    ):
        call = generate(doomed, asked)
        story_id = until_step(call, steps + 6)
        first.process.kill()
    with (
        serving(tmp_path / "second", tiny_package, *state, backend=None) as second,
        grpc.insecure_channel(second.address) as later,
    ):
        resumed = list(watch(later, story_id))
        assert "story adopted" in second.log
    # It went on from a checkpoint of the second window.
    told = [event.progress for event in resumed if event.progress.stage == service_pb.STORY_STAGE_DENOISING]
    assert min(progress.step for progress in told) >= steps + 2
    assert np.array_equal(pictures(resumed), undisturbed)


def test_new_frames_take_after_the_finished_ones(channel: grpc.Channel) -> None:
    """The anchors are seen: the same new frame, with the same seed, is another picture beside other finished frames."""
    asked = [story(seed, 4, "{mia} walks", "{mia} sits") for seed in (1, 2)]
    parents = [ended(channel, create(channel, one)).story_id for one in asked]
    new = pb.Frame(prompt="{mia} dances", seed=77)
    children = []
    for parent in parents:
        request = service_pb.ExtendStoryRequest(story_id=parent, frames=[new])
        children.append(pictures(watch(channel, stories(channel).ExtendStory(request, timeout=30).story.story_id)))
    originals = [pictures(watch(channel, parent)) for parent in parents]
    for child, original in zip(children, originals, strict=True):
        assert np.array_equal(child[:2], original)
    assert np.abs(children[0][2] - children[1][2]).max() > 8


def test_characters_are_scored(channel: grpc.Channel) -> None:
    done = list(generate(channel, story(3, 4, "{mia} walks", "{mia} sits", "a dog")))[-1].done
    assert [score.character for score in done.consistency] == ["mia"]
    assert 0 <= done.consistency[0].score <= 1
