"""How long stories are cut into windows, and which finished frames each window sees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_model.windows import Window, choose_anchors, plan_windows

casts = st.lists(st.lists(st.sampled_from(["mia", "bo", "cat"]), max_size=3, unique=True), max_size=60)
sizes = st.integers(1, 12).flatmap(lambda window: st.tuples(st.just(window), st.integers(0, window - 1)))


@settings(deadline=None)
@given(casts, sizes)
def test_every_frame_is_made_once_and_sees_only_what_exists(story: list[list[str]], size: tuple[int, int]) -> None:
    window, anchors = size
    made: list[int] = []
    for part in plan_windows(story, window, anchors):
        assert part.frames
        assert set(part.anchors) <= set(made)
        assert len(part.anchors) <= anchors
        assert len(part.frames) + len(part.anchors) <= window
        assert list(part.anchors) == sorted(set(part.anchors))
        assert all(
            {*story[anchor]} & {name for frame in part.frames for name in story[frame]} for anchor in part.anchors
        )
        made += part.frames
    assert made == list(range(len(story)))


@settings(deadline=None)
@given(st.integers(1, 300), sizes)
def test_the_cost_of_a_frame_is_flat(frames: int, size: tuple[int, int]) -> None:
    """Rows of all windows, per frame, never pass those of a full later window; only the last may be short."""
    window, anchors = size
    plan = plan_windows([["mia"]] * frames, window, anchors)
    assert all(len(part.frames) == window - anchors for part in plan[1:-1])
    rows = sum(len(part.frames) + len(part.anchors) for part in plan[: len(plan) - 1])
    assert rows <= sum(len(part.frames) for part in plan[:-1]) * window / (window - anchors)


@settings(deadline=None)
@given(casts, st.sets(st.integers(0, 59), min_size=1, max_size=4), st.integers(1, 6))
def test_with_room_enough_every_character_that_was_seen_is_shown(
    story: list[list[str]], new: set[int], count: int
) -> None:
    frames = [frame for frame in sorted(new) if frame < len(story)]
    finished = [frame for frame in range(len(story)) if frame not in frames]
    chosen = choose_anchors(story, frames, finished, count)
    wanted = {name for frame in frames for name in story[frame]}
    seen = {name for frame in finished for name in story[frame]}
    if count >= len(wanted):
        assert wanted & seen <= {name for anchor in chosen for name in story[anchor]}


def test_first_frames_of_each_character_then_the_nearest() -> None:
    story = [["mia"], ["mia"], ["bo"], ["bo", "mia"], [], ["cat"], ["mia", "bo"], ["bo"]]
    assert choose_anchors(story, [6, 7], range(6), 1) == (2,)  # Bo is in more of the new frames.
    assert choose_anchors(story, [6, 7], range(6), 2) == (0, 2)
    assert choose_anchors(story, [6, 7], range(6), 3) == (0, 2, 3)
    assert choose_anchors(story, [6, 7], range(6), 9) == (0, 1, 2, 3)  # Neither nobody nor the cat alone.
    assert choose_anchors(story, [4], range(4), 2) == ()


def test_a_frame_made_anew_sees_frames_on_both_sides() -> None:
    assert choose_anchors([["mia"]] * 6, [3], [0, 1, 2, 4, 5], 3) == (0, 2, 4)


def test_a_long_story() -> None:
    assert plan_windows([["mia"]] * 9, 4, 2) == [
        Window((0, 1, 2, 3)),
        Window((4, 5), (0, 3)),
        Window((6, 7), (0, 5)),
        Window((8,), (0, 7)),
    ]
    assert plan_windows([["mia"]] * 4, 4, 2) == [Window((0, 1, 2, 3))]
    assert plan_windows([], 4, 2) == []


@pytest.mark.parametrize(("window", "anchors"), [(2, 2), (0, 0), (3, -1)])
def test_a_window_without_room_is_refused(window: int, anchors: int) -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        plan_windows([["mia"]], window, anchors)
