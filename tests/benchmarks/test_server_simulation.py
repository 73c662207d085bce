"""The simulation: its device and its baselines do what their names say, and it finds what the scheduler is for."""

from __future__ import annotations

import itertools
import random
from functools import partial
from pathlib import Path

import pytest

from benchmarks.server.baselines import OneAtATime, RequestBatching
from benchmarks.server.simulate import LIMITS, best_batching, capacity, measure, quantile, run
from benchmarks.server.simulation import Arrival, Device, arrivals, simulate
from benchmarks.server.simulation_report import goodput_at_equal, write_report
from benchmarks.server.workloads import PADDED, SATURATED, SCENARIOS, SUBLINEAR
from storyloom_server.scheduler import CostModel, Limits, MemoryModel, Scheduler, Step, StoryShape, StorySpec

DEVICE = Device("test", "", 64 * 64, (2, 4), (0.2, 0.3), cross_frame=0.0, encode=0.1, decode=0.05)
MIXED = SCENARIOS[0]


def shape(frames: int, steps: int = 10) -> StoryShape:
    return StoryShape(frames, 2, DEVICE.pixels, steps)


def test_step_times_follow_the_table() -> None:
    assert DEVICE.step([StoryShape(1, 1, DEVICE.pixels, 1)]) == pytest.approx(0.2)
    assert DEVICE.step([shape(1), StoryShape(1, 1, DEVICE.pixels, 1)]) == pytest.approx(0.25)
    assert DEVICE.step([shape(1), shape(1)]) == pytest.approx(0.3)
    assert DEVICE.step([shape(4)]) == pytest.approx(0.6)
    assert DEVICE.solo(shape(1)) == pytest.approx(0.1 + 10 * 0.2 + 0.05)
    assert DEVICE.shared(shape(1), 4) == pytest.approx(0.1 + 10 * 0.15 + 0.05)


def test_padding_and_cross_frame_attention_cost() -> None:
    three, four = (PADDED.step([StoryShape(1, 1, PADDED.pixels, 1)] * n) for n in (3, 4))
    assert three == four
    alone, together = SUBLINEAR.step([shape(1), shape(1)]), SUBLINEAR.step([shape(2)])
    assert together == pytest.approx(alone * 1.03)


def test_arrivals_are_poisson_and_repeatable() -> None:
    stream = arrivals(lambda _: (shape(1), "x"), rate=5.0, count=4000, seed=1)
    assert stream == arrivals(lambda _: (shape(1), "x"), rate=5.0, count=4000, seed=1)
    gaps = [b.at - a.at for a, b in itertools.pairwise(stream)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)


def test_one_at_a_time_is_a_single_queue() -> None:
    """Latencies equal those of the textbook recursion for one server, first come, first served."""
    stream = arrivals(MIXED.story, rate=0.5 * capacity(MIXED), count=100, seed=3)
    outcomes = {o.spec.story_id: o for o in simulate(OneAtATime, LIMITS, SATURATED, stream)}
    free = 0.0
    for arrival in stream:
        free = max(free, arrival.at) + SATURATED.solo(arrival.spec.shape)
        assert outcomes[arrival.spec.story_id].latency == pytest.approx(free - arrival.at)


def batching(now: list[float], **settings: float) -> RequestBatching:
    return RequestBatching(Limits(max_rows=8), CostModel(), MemoryModel(), lambda: now[0], **settings)  # type: ignore[arg-type]


def test_request_batching_gathers_for_its_delay_and_runs_to_the_end() -> None:
    now = [0.0]
    subject = batching(now, max_delay=0.5)
    subject.submit(StorySpec("a", "t", "k", shape(1, 2)))
    assert subject.next_work() is None
    assert subject.wait_seconds() == pytest.approx(0.5)
    subject.submit(StorySpec("other", "t", "another", shape(1, 2)))
    now[0] = 0.3
    subject.submit(StorySpec("b", "t", "k", shape(1, 2)))
    now[0] = 0.5
    stepped = []
    for _ in range(2):
        work = subject.next_work()
        assert work is not None
        assert not isinstance(work, Step)
        subject.encoded(work.story_id)
    subject.submit(StorySpec("late", "t", "k", shape(1, 2)))
    for _ in range(2):
        work = subject.next_work()
        assert isinstance(work, Step)
        stepped.append(work.story_ids)
        subject.stepped(work.story_ids, 0.1)
    assert stepped == [("a", "b")] * 2


def test_request_batching_starts_a_full_batch_at_once() -> None:
    now = [0.0]
    subject = batching(now, max_delay=10.0)
    for index in range(3):
        subject.submit(StorySpec(str(index), "t", "k", shape(2)))
    assert subject.wait_seconds() == 0 or subject.next_work() is not None


@pytest.mark.parametrize("mix_steps", [False, True])
def test_every_story_finishes_under_every_policy(mix_steps: bool) -> None:
    stream = arrivals(MIXED.story, rate=capacity(MIXED), count=60, seed=2)
    for factory in (Scheduler, OneAtATime, partial(RequestBatching, mix_steps=mix_steps)):
        outcomes = simulate(factory, LIMITS, SATURATED, stream)
        assert {o.spec.story_id for o in outcomes} == {str(index) for index in range(60)}
        assert all(0 < o.first_step <= o.latency for o in outcomes)


def test_mixed_step_counts_share_a_batch_only_where_allowed() -> None:
    stream = [Arrival(0.0, StorySpec(str(i), "t", "k", shape(1, steps))) for i, steps in enumerate((5, 10))]
    separate, mixed = (
        max(o.latency for o in simulate(partial(RequestBatching, max_delay=0.0, mix_steps=mix), LIMITS, DEVICE, stream))
        for mix in (False, True)
    )
    assert mixed < separate


def test_twice_the_goodput_of_request_batching_on_mixed_stories() -> None:
    """At 0.9 of capacity and no worse p99 slowdown; the full curves are in benchmarks/results/server."""
    rate = 0.9 * capacity(MIXED)
    ours = measure(Scheduler, MIXED, rate, 150, seed=1)
    theirs = measure(partial(RequestBatching, **best_batching(MIXED, rate, 60, seed=2)), MIXED, rate, 150, seed=1)
    assert ours["goodput"] >= 2 * theirs["goodput"]
    assert ours["slowdown_p99"] <= theirs["slowdown_p99"]


def test_quantiles() -> None:
    values = list(range(1, 101))
    random.Random(0).shuffle(values)  # noqa: S311
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]


def test_equal_p99_compares_only_where_it_is_no_worse() -> None:
    points = [{"scheduler": {"goodput": g, "slowdown_p99": p}} for g, p in ((1.0, 2.0), (2.0, 4.0), (3.0, 9.0))]
    assert goodput_at_equal(points, {"slowdown_p99": 5.0}, "slowdown_p99") == 2.0
    assert goodput_at_equal(points, {"slowdown_p99": 1.0}, "slowdown_p99") is None


def test_the_report_has_a_row_for_each_load(tmp_path: Path) -> None:
    result = {
        "command": "c", "stories": 12, "slowdown_limit": 3.0, "max_rows": 32,
        "scenarios": [run(SCENARIOS[-1], 12, (0.5, 1.0))],
    }  # fmt: skip
    write_report(result, tmp_path / "simulation.md")
    text = (tmp_path / "simulation.md").read_text()
    assert "| 0.5 |" in text
    assert "| 1.0 |" in text
