"""The papers' orders held against made-up figures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stories.generate import Outcome
from benchmarks.stories.held_out import held_out_stories
from benchmarks.stories.methods import method
from benchmarks.stories.orders import pairs
from benchmarks.stories.papers import ORDERS, Order
from benchmarks.stories.scores import Scored

STORIES = held_out_stories(5, 1, 2, described=False)
ORDER = Order("A paper, table 1", "Face Sim", "faces", ("good", "fair", "bad"))


def rows(values: list[float]) -> list[Scored]:
    """A story for each value, which both of its pictures have."""
    return [Scored(Outcome(story), (), {"faces": [value, value]}) for story, value in zip(STORIES, values, strict=True)]


def test_a_pair_is_judged_by_the_interval_of_its_differences() -> None:
    found = {
        (pair.better, pair.worse): pair
        for pair in pairs(
            [ORDER],
            {
                "bad": rows([0.5, 0.9, 0.1, 0.3, 0.3]),
                "good": rows([0.6, 1.0, 0.3, 0.4, 0.5]),
                "fair": rows([0.7, 0.8, 0.2, 0.5, 0.6]),
            },
        )
    }
    assert found["good", "bad"].verdict == "as in the paper"
    assert found["good", "fair"].verdict == "not told apart"
    assert abs(found["good", "bad"].difference.mean - 0.14) < 1e-12
    assert len(found) == 3


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0.01, 1))
def test_what_is_always_worse_is_the_other_way_round(values: list[float], less: float) -> None:
    lower = [value - less for value in values]
    (pair,) = pairs([ORDER], {"good": rows(lower), "bad": rows(values)})
    assert pair.verdict == "the other way round"


def test_methods_that_did_not_run_or_were_refused_have_no_part() -> None:
    refused = [Scored(Outcome(story, refused="no such adapter")) for story in STORIES]
    assert list(pairs([ORDER], {"good": rows([1] * 5), "fair": refused})) == []
    few = [story if place else Scored(story.outcome) for place, story in enumerate(rows([0] * 5))]
    assert list(pairs([ORDER], {"good": rows([1] * 5), "bad": few})) == [], "four stories are too few"


def test_papers_speak_of_methods_that_there_are() -> None:
    for order in ORDERS:
        for name in order.methods:
            method(name)
