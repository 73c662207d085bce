"""Stories in rounds: what they are planned as, what they cost, and through a real server with a real, tiny model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from storyloom.v1 import story_pb2 as pb
from storyloom.v1 import story_service_pb2 as service_pb
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.features import IdentityFeatures
from storyloom_model.jobs import GlobalReferences
from storyloom_model.redenoising.plan import part
from storyloom_server.catalog import ModelCatalog
from storyloom_server.scheduler import CostModel, StoryShape
from storyloom_server.validate import StoryPlan
from tests.model.tiny import finish
from tests.model.tiny_rounds import build_rounds_package
from tests.server.casts import pictures_of, refusal
from tests.server.planning import accepted, planned, violations
from tests.server.serving import (
    ServerProcess,
    create,
    ended,
    generate,
    serving,
    stories,
    until_step,
    watch,
)

ROUNDS = "story.settings.consistency.rounds"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_rounds_package(tmp_path_factory.mktemp("rounds") / "package")


@pytest.fixture(scope="module")
def catalog(package: Path) -> ModelCatalog:
    return ModelCatalog.load([package])


@pytest.fixture(scope="module")
def server(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("server"), package, backend=None) as running:
        yield running


def in_rounds(count: int | None = 3, frames: int = 3, steps: int = 4, **wish: Any) -> pb.Story:
    """Mia in every frame but each third, which nobody is in."""
    prompts = ("{mia} walks", "{mia} in the park", "the red hill")
    settings = pb.Settings(steps=steps, seed=7, consistency=pb.Consistency(method="story-adapter", adapter="none"))
    if count is not None:
        settings.consistency.rounds.CopyFrom(pb.Rounds(count=count, **wish))
    return pb.Story(
        characters=[pb.Character(name="mia", description="a girl with red hair")],
        frames=[pb.Frame(prompt=prompts[index % 3]) for index in range(frames)],
        settings=settings,
    )


def test_without_a_word_there_are_the_authors_rounds(catalog: ModelCatalog) -> None:
    """By the first adapter that takes whole pictures; what is echoed makes the same plan."""
    plan = planned(in_rounds(None), catalog)
    assert plan.rounds is not None
    assert plan.rounds.rounds.scales[1:] == pytest.approx([0.3 + 0.2 * place / 9 for place in range(10)])
    assert (plan.rounds.adapter, plan.rounds.pictures.reads) == ("plus", "character_states")
    assert plan.settings.identity_adapter == "plus"
    assert plan.settings.consistency.rounds.count == 11
    again = planned(plan.story, catalog)
    assert (again.job, again.rounds) == (plan.job, plan.rounds), "a story that is taken up again is another"
    asked = in_rounds(4, first_scale=0.25, last_scale=1.0)
    asked.settings.identity_adapter = "plain"
    chosen = planned(asked, catalog).rounds
    assert chosen is not None
    assert (chosen.rounds.scales, chosen.adapter) == ((0, 0.25, 0.625, 1.0), "plain")


def test_rounds_are_for_their_method_alone(catalog: ModelCatalog) -> None:
    for change in ({"method": "storydiffusion"}, {"method": "story-adapter", "enabled": False}):
        asked = in_rounds(None)
        asked.settings.consistency.CopyFrom(pb.Consistency(**change))
        plan = planned(asked, catalog)
        assert plan.rounds is None
        assert not plan.settings.consistency.HasField("rounds")
    asked = in_rounds()
    asked.settings.consistency.method = "storynizor"
    assert "set consistency.method to it" in violations(asked, catalog)[ROUNDS]


@pytest.mark.parametrize("scale", [-0.1, 2.5, float("nan")])
def test_bad_rounds_are_told(catalog: ModelCatalog, scale: float) -> None:
    found = violations(in_rounds(33, first_scale=scale, last_scale=scale), catalog)
    assert found.keys() == {f"{ROUNDS}.{field}" for field in ("count", "first_scale", "last_scale")}
    assert found[f"{ROUNDS}.count"] == "33 rounds; ask for 1 to 32"
    assert in_rounds(0).settings.consistency.rounds.HasField("count")
    assert f"{ROUNDS}.count" in violations(in_rounds(0), catalog)


def test_what_does_not_go_together_is_told(catalog: ModelCatalog, tiny_package: Path) -> None:
    for adapter in ("face", "none"):
        asked = in_rounds()
        asked.settings.identity_adapter = adapter
        assert "whole pictures; use plus or plain" in violations(asked, catalog)["story.settings.identity_adapter"]
    twice = in_rounds()
    twice.settings.redenoising.enabled = True
    assert "does not go with story-adapter" in violations(twice, catalog)["story.settings.redenoising"]
    without = ModelCatalog.load([tiny_package])
    assert "story-adapter" in catalog.default.methods
    assert "story-adapter" not in without.default.methods
    told = violations(in_rounds(), without)["story.settings.consistency.method"]
    assert told.startswith("story-adapter needs image encoders, and tiny has none; use one of storynizor, ")


def test_all_rounds_and_windows_count(catalog: ModelCatalog) -> None:
    """Windows have no anchors: frames see whole pictures."""
    story = accepted(in_rounds(5, frames=9), catalog)
    assert [(len(window.frames), window.anchors) for window in story.windows] == [(8, ()), (1, ())]
    assert story.steps == 5 * 2 * 4
    shape = story.spec(None).shape
    assert (shape.frames, shape.steps, shape.rounds) == (8, 40, 5)


def test_a_story_in_rounds_costs_as_many_stories() -> None:
    costs = CostModel().coefficients
    once = StoryShape(2, 2, 64 * 64, 4)
    often = replace(once, steps=12, rounds=3)
    assert costs.story_seconds(often) == pytest.approx(3 * costs.story_seconds(once))
    assert costs.story_seconds(often, 8) == pytest.approx(costs.story_seconds(once) - costs.encode_seconds(once))
    assert costs.story_seconds(often, 5) == pytest.approx(costs.story_seconds(once) + costs.story_seconds(once, 1))
    with pytest.raises(ValueError, match="is no story"):
        replace(once, rounds=0)


def by_hand(denoiser: Denoiser, plan: StoryPlan, windows: Sequence[range]) -> list[bytes]:
    """The pictures that the rounds come to, written out."""
    assert plan.rounds is not None
    encoder = denoiser.reference_encoder
    assert encoder is not None
    shown: list[NDArray[np.uint8]] = []
    for scale in plan.rounds.rounds.scales:
        job = plan.job
        if shown:
            seen = IdentityFeatures(encoder.fingerprint, tuple(map(encoder.encode_picture, shown)))
            job = replace(
                job, identity_adapter=plan.rounds.adapter, global_references=GlobalReferences(seen.to_bytes(), scale)
            )
        states = [finish(denoiser, part(job, window)) for window in windows]
        pictures = [denoiser.decode(state, [frame]) for state in states for frame in range(len(state.job.frames))]
        shown = list(np.concatenate(pictures))
    return [picture.tobytes() for picture in shown]


def test_the_last_rounds_pictures_are_the_story(channel: grpc.Channel, catalog: ModelCatalog, package: Path) -> None:
    """Those of the rounds written out, up to rounding, of a story of two windows; progress counts all of them."""
    asked = in_rounds(3, frames=9)
    asked.settings.preview_interval = 2
    events = list(generate(channel, asked))
    steps = [(event.progress.step, event.progress.steps) for event in events if event.HasField("progress")]
    assert {of for _, of in steps} == {3 * 2 * 4}
    assert steps == sorted(steps)
    assert steps[-1][0] == 24
    assert events[0].accepted.settings.consistency.rounds.count == 3
    assert [event.frame.frame_index for event in events if event.HasField("frame")] == list(range(9))
    previews = [event.preview.step for event in events if event.HasField("preview") and not event.preview.frame_index]
    assert previews == sorted(set(previews))
    assert min(previews) <= 4 < 8 < max(previews), "not of every round"
    timings = events[-1].done.timings
    assert timings.total_seconds >= timings.encode_seconds + timings.denoise_seconds + timings.decode_seconds > 0
    found = pictures_of(events)
    plan = planned(asked, catalog)
    expected = by_hand(Denoiser.load(package), plan, [range(8), range(8, 9)])
    for one, other in zip(found, expected, strict=True):
        levels = [np.frombuffer(picture, np.uint8).astype(int) for picture in (one, other)]
        assert np.abs(levels[0] - levels[1]).max() <= 2
    once = pictures_of(list(generate(channel, in_rounds(1, frames=9))))
    assert all(one != other for one, other in zip(found, once, strict=True)), "also the frames that nobody is in"


def test_a_story_killed_in_its_second_round_is_that_of_one_server(
    channel: grpc.Channel, package: Path, tmp_path: Path
) -> None:
    steps = 30
    asked = in_rounds(3, steps=steps)
    undisturbed = pictures_of(list(generate(channel, asked)))
    state = ("--state-folder", str(tmp_path / "state"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with (
        serving(tmp_path / "first", package, *state, "--checkpoint-seconds", "0", backend=None) as first,
        grpc.insecure_channel(first.address) as doomed,
    ):
        story_id = until_step(generate(doomed, asked), steps + 8)
        os.kill(first.engine_pid, signal.SIGKILL)
        first.process.kill()
        first.process.wait()
    with (
        serving(tmp_path / "second", package, *state, backend=None) as second,
        grpc.insecure_channel(second.address) as later,
    ):
        resumed = list(watch(later, story_id))
        assert "story adopted" in second.log
        assert "of no use" not in second.log
    told = [event.progress for event in resumed if event.progress.stage == service_pb.STORY_STAGE_DENOISING]
    assert min(progress.step for progress in told) > steps, "the first round was made again"
    assert pictures_of(resumed) == undisturbed


def test_more_frames_and_frames_anew_see_those_that_stay(channel: grpc.Channel) -> None:
    """Finished frames are seen in every round but the first, and stay as they are."""
    new = pb.Frame(prompt="{mia} dances", seed=77)
    longer = []
    for seed in (1, 2):
        asked = in_rounds(2)
        asked.settings.seed = seed
        parent = ended(channel, create(channel, asked))
        request = service_pb.ExtendStoryRequest(story_id=parent.story_id, frames=[new])
        child = ended(channel, stories(channel).ExtendStory(request, timeout=30).story.story_id)
        assert child.state == service_pb.STORY_STATE_FINISHED
        assert [frame.reused for frame in child.frames] == [True, True, True, False]
        assert [frame.image.png for frame in child.frames[:3]] == [frame.image.png for frame in parent.frames]
        longer.append(child)
    assert longer[0].frames[3].seed == longer[1].frames[3].seed == 77
    first, second = (pictures_of([service_pb.GenerateStoryResponse(frame=child.frames[3])]) for child in longer)
    assert first != second, "the same frame beside other finished ones"
    redo = service_pb.RedoFrameRequest(story_id=longer[0].story_id, frame_index=1, seed=5)
    redone = ended(channel, stories(channel).RedoFrame(redo, timeout=30).story.story_id)
    assert redone.state == service_pb.STORY_STATE_FINISHED
    assert [frame.reused for frame in redone.frames] == [True, False, True, True]


def test_a_story_can_be_cancelled_in_a_later_round(channel: grpc.Channel) -> None:
    story_id = create(channel, in_rounds(32, steps=20))
    until_step(watch(channel, story_id), 25)
    stories(channel).CancelStory(service_pb.CancelStoryRequest(story_id=story_id), timeout=30)
    assert ended(channel, story_id).state == service_pb.STORY_STATE_CANCELLED


def test_a_refusal_reaches_the_caller(channel: grpc.Channel) -> None:
    code, found = refusal(channel, in_rounds(40))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert found == {f"{ROUNDS}.count": "40 rounds; ask for 1 to 32"}
