"""The load benchmark's schedule and its sums, on numbers that can be checked by hand."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.server.load import Kind, mix, poisson, request, together
from benchmarks.server.report import quantile, summarise, table
from benchmarks.server.scrape import Samples, quantile_between

KINDS = mix((1, 3), (4, 10))


@given(rate=st.floats(0.1, 20), seconds=st.floats(1, 60), seed=st.integers(0, 2**32))
def test_a_schedule_has_the_expected_number_of_stories_within_its_time(rate: float, seconds: float, seed: int) -> None:
    schedule = poisson(KINDS, rate, seconds, seed)
    assert len(schedule) == max(1, round(rate * seconds))
    moments = [arrival.at for arrival in schedule]
    assert moments == sorted(moments)
    assert 0 <= moments[0] <= moments[-1] <= seconds
    assert schedule == poisson(KINDS, rate, seconds, seed)


def test_gaps_between_stories_are_those_of_a_poisson_stream() -> None:
    moments = [arrival.at for arrival in poisson(KINDS, 10.0, 1000.0, seed=1)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(0.1, rel=0.02)
    assert variance == pytest.approx(mean**2, rel=0.1)


def test_a_heap_has_all_kinds_alike() -> None:
    heap = together(KINDS, 8)
    assert {arrival.at for arrival in heap} == {0.0}
    assert [arrival.kind for arrival in heap] == [*KINDS, *KINDS]


def test_a_request_is_of_its_kind() -> None:
    story = request(Kind(3, 10), seed=5).story
    assert (len(story.frames), story.settings.steps, story.settings.seed) == (3, 10, 5)


def test_quantiles() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert quantile([7.0], 0.99) == 7.0


def _story(latency: float | None, slowdown: float | None) -> dict[str, Any]:
    times = (
        {"first_event": 0.01, "first_step": 0.1} if latency is not None else {"first_event": None, "first_step": None}
    )
    return {"scheduler": "steps", "load": 1.0, "latency": latency, "slowdown": slowdown, **times}


def test_goodput_counts_what_is_done_in_time_and_nothing_that_failed() -> None:
    stories = [_story(1.0, 1.0), _story(2.9, 2.9), _story(9.0, 3.1), _story(None, None)]
    found = summarise({"seconds": 4.0, "stories": stories}, "steps", 1.0)
    assert found["goodput"] == 0.5
    assert found["within"] == 0.5
    assert (found["stories"], found["failed"]) == (4, 1)
    assert (found["latency_p50"], found["latency_p99"]) == (2.9, 9.0)
    assert "4 (1 failed)" in "\n".join(table({"seconds": 4.0, "stories": stories}))


def test_a_histogram_quantile_counts_what_came_between_two_scrapes() -> None:
    def scraped(*counts: float) -> Samples:
        bounds = ("0.01", "0.1", "+Inf")
        return Samples(
            {("lag_bucket", frozenset({("le", bound)})): count for bound, count in zip(bounds, counts, strict=True)}
        )

    before, after = scraped(100, 100, 100), scraped(150, 200, 200)
    assert quantile_between(before, after, "lag", 0.5) == pytest.approx(0.01)
    assert quantile_between(before, after, "lag", 0.75) == pytest.approx(0.055)
    assert quantile_between(scraped(0, 0, 0), scraped(1, 1, 2), "lag", 0.99) == pytest.approx(0.1)
