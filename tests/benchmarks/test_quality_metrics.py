"""The figures of `benchmarks.quality`, against values counted by hand and against what must always hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.quality.attributes import HEADS, PERSON, Reading
from benchmarks.quality.metrics import (
    GRID,
    Agreement,
    StoryScore,
    background_distance,
    bootstrap,
    border,
    cross_frame_agreement,
    paired_differences,
    prompt_agreement,
    scene_diversity,
    summarise,
)

ALL = frozenset(HEADS)
READINGS = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in HEADS.items()})
STORIES = st.lists(READINGS, min_size=2, max_size=6)


def reading(**values: str) -> Reading:
    base = {name: options[0] for name, options in HEADS.items()}
    return base | {name.replace("_", " "): value for name, value in values.items()}


def story_score(prompt: float | None, background: float | None = 0.2) -> StoryScore:
    return StoryScore(prompt, 0.5, 0.5, None, background, 1.0)


def test_prompt_agreement_by_hand() -> None:
    readings = [reading(top="coat", scene="park"), reading(top="dress", scene="farm")]
    stated = {"top": frozenset({"coat"}), "glasses": frozenset({"none", "round"}), "bottom": frozenset({"skirt"})}
    visible = [ALL - {"bottom"}, ALL]
    # Frame 1: top and glasses right, bottom hidden, scene right. Frame 2: only the glasses are right.
    found = prompt_agreement(readings, stated, ["park", "beach"], visible)
    assert found == Agreement(agreed=4, asked=7)
    assert found.fraction == pytest.approx(4 / 7)


def test_cross_frame_agreement_by_hand() -> None:
    readings = [reading(top="coat", hat="cap"), reading(top="coat"), reading(top="dress", bottom="skirt")]
    visible = [ALL, ALL, ALL - {"bottom"}]
    # top: 1 of 3 pairs agrees; hat: 1 of 3; bottom: seen in both frames of one pair only, where it agrees.
    found = cross_frame_agreement(readings, visible, ["top", "hat", "bottom"])
    assert found == Agreement(agreed=3, asked=7)


def test_nothing_asked_has_no_fraction() -> None:
    assert cross_frame_agreement([reading(), reading()], [ALL, ALL], []).fraction is None
    assert cross_frame_agreement([reading()], [ALL]).fraction is None


@given(STORIES)
def test_equal_frames_agree_and_the_order_of_frames_does_not_matter(readings: list[Reading]) -> None:
    visible = [ALL] * len(readings)
    assert cross_frame_agreement([readings[0]] * 3, [ALL] * 3).fraction == 1
    assert cross_frame_agreement(readings, visible) == cross_frame_agreement(readings[::-1], visible)


@given(STORIES, st.sets(st.sampled_from(PERSON)))
def test_parts_of_the_attributes_add_up(readings: list[Reading], stated: set[str]) -> None:
    visible = [ALL] * len(readings)
    whole = cross_frame_agreement(readings, visible)
    parts = [cross_frame_agreement(readings, visible, names) for names in (stated, set(PERSON) - stated)]
    assert Agreement(sum(p.agreed for p in parts), sum(p.asked for p in parts)) == whole


@given(STORIES)
def test_what_is_read_is_what_was_stated_gives_full_marks(readings: list[Reading]) -> None:
    person = {name: frozenset(r[name] for r in readings) for name in PERSON}
    scenes = [r["scene"] for r in readings]
    assert prompt_agreement(readings, person, scenes, [ALL] * len(readings)).fraction == 1
    nowhere = ["nowhere"] * len(readings)
    assert prompt_agreement(readings, {}, nowhere, [ALL] * len(readings)).fraction == 0


def test_background_ignores_the_person() -> None:
    first = np.zeros((GRID, GRID, 3), np.uint8)
    second = first.copy()
    second[~border()] = 255
    assert background_distance(np.stack([first, second])) == 0
    second[border()] = 51
    assert background_distance(np.stack([first, second])) == pytest.approx(0.2)
    assert 0.2 < border().mean() < 0.7


def test_background_averages_over_pairs_and_areas() -> None:
    shades = [np.full((32, 48, 3), shade, np.uint8) for shade in (0, 51, 102)]
    assert background_distance(np.stack(shades)) == pytest.approx((0.2 + 0.4 + 0.2) / 3)
    chequered = np.zeros((32, 32, 3), np.uint8)
    chequered[::2, ::2] = 204  # one pixel in four of each 2 x 2 block
    assert background_distance(np.stack([chequered, np.zeros_like(chequered)])) == pytest.approx(0.2)
    assert background_distance(np.stack(shades[:1])) is None


@given(arrays(np.uint8, (3, 16, 16, 3)))
@settings(max_examples=30)
def test_background_is_a_distance(pictures: np.ndarray) -> None:
    distance = background_distance(pictures)
    assert distance is not None
    assert 0 <= distance <= 1
    assert distance == pytest.approx(background_distance(pictures[::-1]))


def test_background_refuses_odd_sizes() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        background_distance(np.zeros((2, 30, 32, 3), np.uint8))


def test_scene_diversity() -> None:
    assert scene_diversity([reading(scene=s) for s in ("park", "farm", "park", "lake")]) == 0.75


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 9))
def test_bootstrap_holds_the_mean_and_is_seeded(values: list[float], seed: int) -> None:
    interval = bootstrap(values, seed=seed, draws=200)
    assert interval == bootstrap(values, seed=seed, draws=200)
    assert interval.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_bootstrap_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    intervals = [bootstrap(rng.normal(0.5, 0.2, 60).tolist(), seed=i, draws=400) for i in range(200)]
    covered = np.mean([i.low <= 0.5 <= i.high for i in intervals])
    assert 0.88 <= covered <= 0.99


def test_bootstrap_needs_values() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])


def test_summary_leaves_out_what_stories_lack() -> None:
    figures = summarise([story_score(0.5), story_score(None), story_score(1.0, background=None)])
    assert figures["prompt"].mean == 0.75
    assert figures["prompt"].stories == 2
    assert figures["background"].stories == 2
    assert "consistency_unstated" not in figures


def test_differences_are_paired_by_story() -> None:
    baseline = [story_score(0.1), story_score(0.9), story_score(None)]
    better = [story_score(0.2), story_score(1.0), story_score(0.5)]
    found = paired_differences(better, baseline)["prompt"]
    assert found.stories == 2
    assert (found.low, found.mean, found.high) == pytest.approx((0.1, 0.1, 0.1))
