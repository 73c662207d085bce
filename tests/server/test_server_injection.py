"""Feature injection and FreeU as stories ask for them: checks, and what the scheduler is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from storyloom.v1 import story_pb2 as pb
from storyloom_model import jobs
from storyloom_model.fingerprints import job_fingerprint
from storyloom_server.catalog import ModelCatalog
from storyloom_server.engine.shapes import phases, story_shape
from storyloom_server.scheduler import CostModel, Load, Phase, StoryShape, StorySpec
from storyloom_server.scheduler.open_story import OpenStory
from tests.server.casts import cast_story, picture
from tests.server.planning import accepted, planned, violations


@pytest.fixture(scope="module")
def catalog(tiny_package: Path) -> ModelCatalog:
    return ModelCatalog.load([tiny_package])


def asked(*prompts: str, injection: bool | None = True, method: str = "consistory", **settings: Any) -> pb.Story:
    consistency = pb.Consistency(method=method, feature_injection=injection)
    return pb.Story(
        characters=[pb.Character(name="mia", description="a girl"), pb.Character(name="bo", description="a man")],
        frames=[pb.Frame(prompt=prompt) for prompt in prompts or ("{mia} walks", "{mia} sits")],
        settings=pb.Settings(**({"steps": 20, "seed": 1, "consistency": consistency} | settings)),
    )


def test_absent_they_are_off_and_nothing_is_told(catalog: ModelCatalog) -> None:
    for story in (asked(injection=None), asked(injection=False, freeu=pb.FreeU(enabled=False, b1=2.0))):
        plan = planned(story, catalog)
        assert (plan.job.feature_injection, plan.job.freeu) == (False, None)
        assert not plan.settings.consistency.HasField("feature_injection")
        assert not plan.settings.HasField("freeu")


def test_what_is_asked_is_echoed_and_planned_again_the_same(catalog: ModelCatalog) -> None:
    """The wire has fewer digits than a manifest: what a server plans after a restart must not differ."""
    plan = planned(asked(freeu=pb.FreeU(s2=0.7)), catalog)
    assert plan.job.feature_injection
    told = plan.settings
    assert told.consistency.feature_injection
    numbers = [told.freeu.b1, told.freeu.b2, told.freeu.s1, told.freeu.s2]
    assert (told.freeu.enabled, numbers) == (True, pytest.approx([1.1, 1.2, 0.6, 0.7]))
    again = planned(pb.Story.FromString(plan.story.SerializeToString()), catalog)
    assert again.settings == told
    assert job_fingerprint(again.job) == job_fingerprint(plan.job)
    assert job_fingerprint(plan.job) != job_fingerprint(planned(asked(), catalog).job)


def test_a_package_has_numbers_of_its_own(tiny_package: Path, tmp_path: Path) -> None:
    manifest = yaml.safe_load((tiny_package / "storyloom.yaml").read_text())
    folder = tmp_path / "package"
    folder.mkdir()
    for file in tiny_package.iterdir():
        if file.name != "storyloom.yaml":
            (folder / file.name).symlink_to(file)
    (folder / "storyloom.yaml").write_text(yaml.safe_dump(manifest | {"freeu": {"b1": 1.5, "b2": 1.6, "s1": 0.9}}))
    catalog = ModelCatalog.load([folder])
    freeu = planned(asked(freeu=pb.FreeU(b2=1.0)), catalog).job.freeu
    assert freeu == jobs.FreeU(1.5, 1.0, pytest.approx(0.9), pytest.approx(0.4))  # type: ignore[arg-type]
    defaults = catalog.default.describe(is_default=True, max_request_bytes=1).defaults
    assert (defaults.freeu.enabled, defaults.freeu.b1, defaults.freeu.b2) == (False, 1.5, pytest.approx(1.6))


def test_bad_wishes_are_told_at_once(catalog: ModelCatalog) -> None:
    story = asked(method="storynizor", freeu=pb.FreeU(b1=-1.0, b2=float("nan"), s1=4.5, s2=4.0))
    by_path = violations(story, catalog)
    names = {f"story.settings.freeu.{name}" for name in ("b1", "b2", "s1")}
    assert by_path.keys() == names | {"story.settings.consistency.feature_injection"}
    assert "consistory, and this story's is storynizor" in by_path["story.settings.consistency.feature_injection"]
    assert "use 0 to 4" in by_path["story.settings.freeu.b2"]


def test_every_window_is_made_twice_where_there_is_somebody_to_take_from(catalog: ModelCatalog) -> None:
    """Nine frames in windows of eight: the last frame is alone but for its anchors."""
    story = accepted(asked(*["{mia} walks", "{mia} sits"] * 4, "{mia} runs"), catalog)
    first, second = story.windows
    assert (len(first.frames), len(second.frames), len(second.anchors)) == (8, 1, 2)
    run = (Phase(1, (8,)), Phase(2, (8, *[1] * 8)), Phase(18, (8,)), Phase(2, (8, *[1] * 8)), Phase(17, (8,)))
    later = (Phase(1, (3,)), Phase(2, (3, 1, 1, 1)), Phase(18, (3,)), Phase(2, (3, 1, 1, 1)), Phase(17, (3,)))
    assert story.spec(None).shape.phases == run + later
    assert [story.steps_of(window) for window in story.windows] == [40, 40]
    assert story.steps == 80


def test_controlnets_cost_what_they_take_of_a_step(pose_package: Path) -> None:
    """One of a pose, and one that reads the faces of references where frames bring no picture."""
    catalog = ModelCatalog.load([pose_package])
    plain, posed = cast_story(picture(), frames=2), cast_story(picture(), frames=2)
    posed.frames[0].pose.picture = picture()
    without, with_pose = (phases(planned(one, catalog).job) for one in (plain, posed))
    assert ([one.controlled for one in without], [one.controlled for one in with_pose]) == ([0], [1])
    job = planned(posed, catalog).job
    assert job.face_controlnet == "face"
    faced = phases(replace(job, identities=(jobs.Identity("mia", b""),)))
    assert [one.controlled for one in faced] == [3]
    small, large = (story_shape(replace(job, identities=who)) for who in ((), (jobs.Identity("mia", b""),)))
    assert small.rows == large.rows
    least = story_shape(planned(plain, catalog).job)
    assert large.load.row_megapixels > small.load.row_megapixels > least.load.row_megapixels


phase_lists = st.lists(
    st.builds(
        Phase, st.integers(1, 6), st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), st.integers(0, 6)
    ),
    min_size=1,
    max_size=6,
)


@given(phase_lists, st.sampled_from([1, 2]))
def test_the_scheduler_counts_every_step_with_its_own_rows(told: list[Phase], branches: int) -> None:
    """After any number of steps: the next one's load, the seconds left, and the largest of all as what is held."""
    each = [phase for phase in told for _ in range(phase.steps)]
    shape = StoryShape(2, branches, 2**20, len(each), phases=tuple(told))
    loads = [
        Load(
            1,
            branches * sum(one.groups),
            branches * (sum(one.groups) + 0.44 * one.controlled),
            branches * sum(size**2 for size in one.groups),
        )
        for one in each
    ]
    costs = CostModel().coefficients
    story = OpenStory.of(StorySpec("s", "t", "k", shape), 0, now=0.0, batches=0)
    story.price(costs)
    assert story.held == max(shape.loads_after(0), key=lambda one: one[1])[1]
    assert story.held.rows == max(load.rows for load in loads)
    for done, load in enumerate(loads):
        assert story.load == pytest.approx(load)
        rest = sum(costs.step_seconds(one) for one in loads[done:])
        steps, seconds = story.later
        assert (story.steps_left - steps) * story.step_seconds + seconds == pytest.approx(rest)
        assert costs.story_seconds(shape, done) == pytest.approx(
            rest + costs.decode_seconds(shape, 2) + (0 if done else costs.encode_seconds(shape))
        )
        if story.be_at(done + 1):
            story.price(costs)
    assert shape.loads_after(len(each)) == []
