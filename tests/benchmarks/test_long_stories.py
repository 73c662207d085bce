"""Long stories: what is asked for, what is computed of faces and times, and that a server's frames are timed."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.long.figures import Moment, agreement, course, window_costs
from benchmarks.long.make import long_maker
from benchmarks.long.report import PAGE, PLOT, StoryFigures, write
from benchmarks.long.stories import BLOCK, MOST_FRAMES, long_stories
from benchmarks.stories.generate import RECORD
from benchmarks.stories.methods import METHODS
from benchmarks.stories.similarity import Vectors
from benchmarks.stories.wording import framing, scene
from storyloom import Character, StoryState
from storyloom_model.windows import plan_windows
from tests.model.tiny import build_tiny_package

CASTS = [("mia",)] * 20


def face(degrees: float) -> Vectors:
    """A face that is so far from the first axis."""
    angle = np.deg2rad(degrees)
    return np.asarray([[np.cos(angle), np.sin(angle)]], np.float32)


NOBODY = np.zeros((0, 2), np.float32)


def test_every_frame_differs_and_every_block_has_the_same_scenes_and_framings() -> None:
    first, other = long_stories(2, MOST_FRAMES)
    prompts = [frame.prompt for frame in first.story.frames]
    assert len(set(prompts)) == len(prompts) == MOST_FRAMES
    for start in range(0, MOST_FRAMES, BLOCK):
        block = prompts[start : start + BLOCK]
        assert len({scene(prompt) for prompt in block}) == BLOCK
        told = Counter(framing(prompt) for prompt in block)
        assert told == {"portrait": BLOCK // 2, "close-up": BLOCK // 4, "full body": BLOCK // 4}
    assert first.story.characters != other.story.characters
    assert long_stories(1, 30)[0].story.frames == first.story.frames[:30]
    assert len(first.references) == 1
    with pytest.raises(ValueError, match="for 1 to 320"):
        long_stories(1, MOST_FRAMES + 1)
    with pytest.raises(ValueError, match="for 1 to 12"):
        long_stories(13, 20)


def test_one_and_the_same_face_agrees_as_well_at_the_end() -> None:
    found = agreement([face(10)] * 8, range(4), range(4, 8))
    assert found is not None
    assert (found.within.mean, found.between.mean) == pytest.approx((1, 1))
    assert (found.difference.low, found.difference.high) == pytest.approx((0, 0))
    assert found.faces == (4, 4)


def test_a_face_that_drifts_away_agrees_less_at_the_end() -> None:
    """By hand: pairs of 0, 10, 20 degrees; then 40 degrees with each of these."""
    faces = [face(0), face(10), NOBODY, face(20), face(40), NOBODY]
    found = agreement(faces, range(4), [4, 5])
    assert found is not None
    within = np.mean(np.cos(np.deg2rad([10, 20, 10])))
    between = np.mean(np.cos(np.deg2rad([40, 30, 20])))
    assert found.within.mean == pytest.approx(within)
    assert found.between.mean == pytest.approx(between)
    assert found.difference.mean == pytest.approx(between - within)
    assert found.difference.high < 0
    assert found.faces == (3, 1)


def test_too_few_faces_have_no_agreement() -> None:
    assert agreement([face(0), NOBODY, face(0)], [0, 1], [2]) is None
    assert agreement([face(0), face(0), NOBODY], [0, 1], [2]) is None


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 90), min_size=4, max_size=12))
def test_intervals_hold_their_means_and_cosines_stay_in_range(angles: list[float]) -> None:
    half = len(angles) // 2
    found = agreement([face(angle) for angle in angles], range(half), range(half, len(angles)))
    assert found is not None
    assert found.difference.mean == pytest.approx(found.between.mean - found.within.mean)
    for figure in (found.within, found.between):
        assert -1e-6 <= figure.low <= figure.high <= 1 + 1e-6


def test_a_window_costs_what_passed_since_the_one_before() -> None:
    """8 frames, then 6 beside two anchors: frames come one after the other, a second each, and anchors cost theirs."""
    windows = plan_windows(CASTS, 8, 2)
    moments = [Moment(frame, frame + 1.0, 100.0 + 2.0 * (frame + 1)) for frame in range(-1, 20)]
    costs = window_costs(windows, moments)
    assert [(cost.first, cost.frames, cost.anchors) for cost in costs] == [(0, 8, 0), (8, 6, 2), (14, 6, 2)]
    assert [cost.seconds for cost in costs] == pytest.approx([1, 1, 1])
    assert [cost.processor for cost in costs] == pytest.approx([2, 2, 2])


def test_a_window_within_which_a_run_was_stopped_is_left_out() -> None:
    """The second run began within the second of three windows; its engine's processor time began anew."""
    first = [Moment(frame, frame + 1.0, 100.0 + frame, run=1) for frame in range(-1, 10)]
    second = [
        Moment(-1, 0.0, 3.0, run=2),
        *(Moment(frame, 500.0 + frame, 3.0 + frame, run=2) for frame in range(10, 20)),
    ]
    costs = window_costs(plan_windows(CASTS, 8, 2), first + second)
    assert [(cost.first, cost.processor) for cost in costs] == [(0, 1.0), (14, 1.0)]


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 10), st.floats(-0.5, 2))
def test_growth_is_from_the_first_window_with_anchors_to_the_last_whole_one(start: float, growth: float) -> None:
    windows = plan_windows([("mia",)] * 71, 8, 2)  # 8, ten windows of 6, and one of 3
    costs = window_costs(windows, [Moment(frame, frame, frame) for frame in range(-1, 71)])
    line = [start * (1 + growth * place / 9) for place in range(10)]
    found = course(costs, [1000.0, *line, 1000.0])
    assert found is not None
    assert found.growth.mean == pytest.approx(growth / (1 + growth / 2), abs=1e-9)
    assert (found.first, found.last) == pytest.approx((line[0], line[-1]))
    assert found.growth.stories == 10


def test_two_windows_say_nothing_of_a_course() -> None:
    windows = plan_windows(CASTS, 8, 2)
    costs = window_costs(windows, [Moment(frame, frame, frame) for frame in range(-1, 20)])
    assert course(costs, [1.0, 1.0, 1.0]) is None


def figures(name: str, frames: int = 40) -> StoryFigures:
    faces = [face(float(frame)) for frame in range(frames)]
    costs = window_costs(plan_windows([("mia",)] * frames, 8, 2), [Moment(n, n, n) for n in range(-1, frames)])
    return StoryFigures(
        name=name,
        identity=agreement(faces, range(BLOCK), range(frames - BLOCK, frames)),
        blocks=[agreement(faces, range(BLOCK), range(BLOCK)), None],
        to_reference=[0.5, None],
        windows=costs,
        processor=course(costs, [cost.processor for cost in costs]),
        wall=None,
    )


def test_the_page_gathers_the_methods_of_several_runs(tmp_path: Path) -> None:
    facts = {"about": "as told", "block": BLOCK, "frames": 40, "date": "2026-01-01", "machine": {}}
    write("none", [figures("1-000")], facts | {"steps": 25, "command": "first"}, tmp_path)
    write("amsa", [figures("1-000"), figures("1-001")], facts | {"steps": 12, "command": "second"}, tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| amsa")] == [
        ["| amsa, 1-000", "12"],
        ["| amsa, 1-001", "12"],
    ]
    assert "| none, 1-000 | 25 | " in page
    assert "0.500, -" in page
    assert "+0.0 % [" in page
    assert "`first`" in page
    assert "`second`" in page
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "none.json").read_text())
    assert record["stories"] == [json.loads(json.dumps(asdict(figures("1-000"))))]


def test_a_server_of_its_own_is_timed_frame_by_frame(tmp_path: Path) -> None:
    package = build_tiny_package(tmp_path / "tiny")
    (told,) = long_stories(1, 10)
    # The tiny model's text encoder reads less than the descriptions of the real one.
    brief = told.story.model_copy(update={"characters": {told.casts[0][0]: Character(description="a man")}})
    asked = replace(told, story=brief)
    with long_maker(package, tmp_path / "out", tmp_path / "server", {"steps": 1}) as maker:
        # What a stopped run of other settings left behind.
        other = maker.client.client.create_story(brief.with_settings(steps=100)).story_id
        outcome, moments = maker.make("amsa", METHODS["amsa"], asked)
        assert maker.client.client.get_story(other).state is StoryState.CANCELLED
        assert maker.steps == 1
        assert outcome.folder is not None
        (outcome.folder / RECORD).unlink()
        # As after a stop: the story is taken up, and what was noted of its frames stays.
        again = maker.make("amsa", METHODS["amsa"], asked)
    assert sorted(moment.frame for moment in moments) == list(range(-1, 10))
    assert moments[-1].processor > moments[0].processor
    (first, second) = window_costs(plan_windows(asked.casts, 8, 2), moments)
    assert min(first.seconds, second.seconds) > 0
    assert again[0].folder == outcome.folder
    assert window_costs(plan_windows(asked.casts, 8, 2), again[1]) == [first, second]
