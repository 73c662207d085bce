"""Re-denoising: what it is planned as, what it costs, and through a real server."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from storyloom.v1 import story_pb2 as pb
from storyloom_model.step_rows import total_steps
from storyloom_server.catalog import ModelCatalog
from storyloom_server.engine.shapes import story_shape
from storyloom_server.scheduler import CostModel, Limits, Phase, StoryShape
from tests.server.casts import GREEN, PINK, cast_story, made, picture
from tests.server.planning import accepted, planned, violations
from tests.server.scheduling import Run, Traffic, spec
from tests.server.serving import ServerProcess, generate, serving


@pytest.fixture(scope="module")
def catalog(identity_package: Path) -> ModelCatalog:
    return ModelCatalog.load([identity_package])


@pytest.fixture(scope="module")
def server(identity_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("redenoising"), identity_package) as running:
        yield running


def two_passes(*pictures: bytes, steps: int = 5, frames: int = 2, **wish: Any) -> pb.Story:
    asked = cast_story(*(pictures or (picture(),)), steps=steps, frames=frames)
    asked.settings.redenoising.CopyFrom(pb.Redenoising(**wish))
    return asked


def test_a_wish_becomes_a_second_pass(catalog: ModelCatalog) -> None:
    """Step 1 of 5, the paper's pixels in proportion; the region prompt is style and description."""
    asked = two_passes()
    asked.style = "a painting of"
    asked.characters.add(name="bo", description="an old man")
    asked.frames[1].characters.append("bo")
    plan = planned(asked, catalog)
    redenoising = plan.job.redenoising
    assert redenoising is not None
    assert (redenoising.start, redenoising.margin, redenoising.growth) == (1, 1, 3)
    (region,) = redenoising.regions
    assert (region.character, region.prompt.text) == ("mia", "a painting of a girl")
    assert region.prompt.spans == {"mia": ((14, 20),)}
    assert total_steps(plan.job) == 9
    echoed = plan.settings.redenoising
    assert (echoed.enabled, round(echoed.start, 6), echoed.mask_margin, echoed.mask_growth) == (True, 0.2, 1, 3)
    assert planned(plan.story, catalog).job == plan.job, "a story that is taken up again is another"
    exact = planned(two_passes(start=0.5, mask_margin=0, mask_growth=512, steps=50), catalog).job.redenoising
    assert exact is not None
    assert (exact.start, exact.margin, exact.growth) == (25, 0, 512)
    last = planned(two_passes(start=0.99), catalog).job.redenoising
    assert last is not None
    assert last.start == 4


def test_without_the_wish_there_is_one_pass(catalog: ModelCatalog) -> None:
    for asked in (two_passes(enabled=False), cast_story(picture())):
        plan = planned(asked, catalog)
        assert plan.job.redenoising is None
        assert not plan.settings.HasField("redenoising")


@pytest.mark.parametrize("start", [-0.1, 1.0, float("nan")])
def test_bad_wishes_are_told(catalog: ModelCatalog, start: float) -> None:
    found = violations(two_passes(start=start, mask_margin=513, mask_growth=600, retries=5), catalog)
    fields = ("start", "mask_margin", "mask_growth", "retries")
    assert found.keys() == {f"story.settings.redenoising.{field}" for field in fields}
    assert "use 0 to 512" in found["story.settings.redenoising.mask_growth"]


def test_somebody_must_have_references(catalog: ModelCatalog) -> None:
    asked = two_passes()
    del asked.characters[0].references[:]
    assert "none has any; add some" in violations(asked, catalog)["story.settings.redenoising"]
    aside = two_passes()
    aside.settings.identity_adapter = "none"
    assert "needs an identity adapter" in violations(aside, catalog)["story.settings.redenoising"]


def test_the_cost_is_that_of_both_passes(catalog: ModelCatalog) -> None:
    """Five steps of two frames with guidance, then four of the one character in each."""
    plan = planned(two_passes(), catalog)
    shape = story_shape(plan.job)
    assert (shape.steps, shape.phases) == (9, (Phase(9, (2,)),))
    assert [(steps, load.rows) for steps, load in shape.loads_after(0)] == [(9, 4)]
    assert [(steps, load.rows) for steps, load in shape.loads_after(7)] == [(2, 4)]
    assert shape.loads_after(9) == []
    pair = replace(shape, phases=(Phase(5, (2,)), Phase(4, (2, 1))))
    assert [load.rows for _, load in pair.loads_after(0)] == [4, 6]
    assert pair.rows == 6
    costs = CostModel().coefficients
    first, second = (load for _, load in pair.loads_after(0))
    alone = costs.encode_seconds(pair) + costs.decode_seconds(pair, 2)
    expected = alone + 5 * costs.step_seconds(first) + 4 * costs.step_seconds(second)
    assert costs.story_seconds(pair) == pytest.approx(expected)
    left = costs.story_seconds(pair, 6)
    assert left == pytest.approx(costs.decode_seconds(pair, 2) + 3 * costs.step_seconds(second))


@pytest.mark.parametrize(
    "phases",
    [
        (Phase(3, (2,)),),
        (Phase(2, (2,)), Phase(2, ())),
        (Phase(4, (2,)), Phase(0, (1,))),
        (Phase(2, (2,)), Phase(2, (0,))),
        (Phase(4, (2,), -1),),
    ],
)
def test_shapes_that_make_no_sense_are_refused(phases: tuple[Phase, ...]) -> None:
    with pytest.raises(ValueError, match="its phases take all of its steps"):
        StoryShape(2, 2, 64 * 64, 4, phases=phases)


def test_a_long_story_has_two_passes_in_each_window(catalog: ModelCatalog) -> None:
    """Bo, who has no references, is alone in the last window: it takes one pass."""
    asked = two_passes(frames=9)
    asked.characters.add(name="bo", description="an old man")
    asked.frames[8].CopyFrom(pb.Frame(prompt="{bo} sits"))
    story = accepted(asked, catalog)
    assert [total_steps(story.job_of(window)) for window in story.windows] == [9, 5]
    assert story.steps == 14
    shape = story.spec(None).shape
    assert (shape.steps, shape.phases) == (14, (Phase(9, (8,)), Phase(5, (1,))))


@pytest.mark.parametrize("seed", range(8))
def test_every_promise_of_the_scheduler_holds_with_two_passes(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    traffic = []
    for index in range(12):
        one = spec(str(index), frames=draw.randint(1, 3), steps=draw.randint(2, 8), tenant=draw.choice("ab"))
        if draw.random() < 0.7:
            groups = tuple(draw.randint(1, one.shape.frames) for _ in range(draw.randint(1, 2)))
            second = draw.randint(1, one.shape.steps - 1)
            phases = (Phase(one.shape.steps - second, (one.shape.frames,)), Phase(second, groups))
            one = replace(one, shape=replace(one.shape, phases=phases))
        traffic.append(Traffic(one, arrives=draw.uniform(0, 0.3)))
    run = Run(Limits(max_rows=64), traffic).go()
    assert run.steps == {story.spec.story_id: story.spec.shape.steps for story in traffic}
    assert run.finished.keys() == run.steps.keys()


def test_progress_counts_both_passes_through_a_server(channel: grpc.Channel) -> None:
    events = list(generate(channel, two_passes()))
    steps = [(event.progress.step, event.progress.steps) for event in events if event.HasField("progress")]
    assert {of for _, of in steps} == {9}
    assert steps == sorted(steps)
    assert steps[-1][0] == 9
    assert events[0].accepted.settings.redenoising.enabled


def test_the_wish_reaches_the_model(channel: grpc.Channel) -> None:
    asked = [two_passes(), two_passes(start=0.6), two_passes(mask_growth=7), cast_story(picture(), steps=5)]
    assert len({made(channel, each)[0] for each in asked}) == 4


def test_pictures_of_two_people_are_two_stories(channel: grpc.Channel) -> None:
    assert made(channel, two_passes(picture(GREEN))) != made(channel, two_passes(picture(PINK)))
