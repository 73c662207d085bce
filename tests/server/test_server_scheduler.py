"""The scheduler's promises: nobody starves, no story is split, every cap holds, tenants share, all finish."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_server.scheduler import (
    CostModel,
    Decode,
    Encode,
    Limits,
    MemoryModel,
    Preview,
    Priority,
    Scheduler,
    Status,
    Step,
    Work,
)
from tests.server.scheduling import Run, Traffic, VirtualDevice, spec


def random_run(draw: random.Random) -> Run:
    """A random schedule: a few tenants and keys, stories of all kinds, tight limits, at times too little memory."""
    max_rows = draw.randint(1, 16)
    limits = Limits(
        max_rows=max_rows,
        max_active_stories=draw.randint(1, 12),
        max_active_rows=max_rows + draw.randint(0, 30),
        patience=draw.randint(1, 6),
        queue_patience=draw.randint(1, 40),
        debt_seconds=draw.choice([0.1, 1.0, 30.0]),
    )
    weights = {tenant: draw.choice([0.5, 1.0, 4.0]) for tenant in "abc"}
    busy = draw.choice([0.0, 0.5, 3.0])
    traffic = []
    for index in range(draw.randint(1, 12)):
        steps, tenant = draw.randint(1, 6), draw.choice("aabc")
        one = spec(
            str(index), tenant=tenant, weight=weights[tenant], key=draw.choice("xxy"), frames=draw.randint(1, 6),
            branches=draw.choice([1, 2]), anchors=draw.choice([0, 0, 2]), steps=steps,
            priority=draw.choice(list(Priority)), deadline=draw.choice([None, None, 0.5, 3.0]),
            done_steps=draw.choice([0, 0, steps // 2, steps]), alone=draw.random() < 0.1,
            preview_interval=draw.choice([0, 0, 2]),
        )  # fmt: skip
        cancelled = draw.uniform(0, 3) if draw.random() < 0.15 else None
        traffic.append(Traffic(one, arrives=draw.uniform(0, busy), cancelled_at=cancelled))
    device = VirtualDevice(base=draw.choice([0.0, 0.02, 0.1]), memory_rows=draw.choice([3, 8, 100]))
    return Run(limits, traffic, device)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_promise_holds_on_random_traffic(draw: random.Random) -> None:
    random_run(draw).go().check_the_end()


@pytest.mark.slow
def test_every_promise_holds_on_ten_thousand_schedules() -> None:
    for seed in range(10_000):
        random_run(random.Random(seed)).go().check_the_end()  # noqa: S311


@settings(max_examples=30, deadline=None)
@given(st.integers())
def test_the_same_traffic_gives_the_same_schedule(seed: int) -> None:
    first, second = (random_run(random.Random(seed)).go() for _ in range(2))  # noqa: S311
    assert first.log == second.log


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_nobody_waits_long_for_other_tenants_either(draw: random.Random) -> None:
    """Between two batches with stories of a tenant, the others are served for no longer than twice their debt limit.

    With the patience within the tenant, that bounds the number of batches between two steps of any active story,
    whatever the other tenants send: here, long streams of stories that never end while the story in question runs.
    """
    weights = {tenant: draw.choice([0.5, 1.0, 2.0]) for tenant in "abc"}
    limits = Limits(max_rows=8, patience=3, debt_seconds=0.5)
    traffic = [
        Traffic(spec(f"{tenant}{index}", tenant=tenant, weight=weights[tenant], key=draw.choice("xyz"),
                     frames=draw.randint(1, 8), steps=draw.randint(5, 20)), arrives=draw.uniform(0, 4))
        for tenant in "abc"
        for index in range(draw.randint(1, 6))
    ]  # fmt: skip
    run = Run(limits, traffic).go()
    run.check_the_end()
    longest, shortest = max(run.batch_seconds), min(run.batch_seconds)
    between_turns = sum(w * 2 * limits.debt_seconds + longest for w in weights.values()) / shortest
    for story_id, wait in run.longest_wait.items():
        turns = limits.patience + run.most_ready[run.specs[story_id].tenant]
        assert wait <= turns * (1 + between_turns)


def shares(run: Run) -> dict[str, float]:
    """Device seconds of steps by tenant, each batch divided by rows."""
    found: dict[str, float] = defaultdict(float)
    for batch, seconds in zip(run.batches, run.batch_seconds, strict=True):
        rows = sum(run.specs[story_id].shape.rows for story_id in batch)
        for story_id in batch:
            found[run.specs[story_id].tenant] += seconds * run.specs[story_id].shape.rows / rows
    return found


@settings(max_examples=40, deadline=None)
@given(
    weights=st.tuples(*[st.sampled_from([1.0, 2.0, 3.0])] * 3),
    frames=st.tuples(*[st.sampled_from([2, 4, 8])] * 3),
    keys=st.sampled_from(["kkk", "xyz", "xxy"]),
    until=st.floats(2.0, 12.0),
)
def test_backlogged_tenants_share_by_weight(
    weights: tuple[float, ...], frames: tuple[int, ...], keys: str, until: float
) -> None:
    """Whatever their keys and story sizes, and at every moment: used time by weight differs by a batch at most.

    Each tenant always has enough stories to fill a batch by itself.
    """
    traffic = [
        Traffic(spec(f"{tenant}{index}", tenant=tenant, weight=weights[place], frames=frames[place],
                     key=keys[place], steps=100))
        for place, tenant in enumerate("abc")
        for index in range(8)
    ]  # fmt: skip
    device = VirtualDevice(encode=0.0, decode=0.0)
    run = Run(Limits(max_rows=8, patience=4), traffic, device).go(until)
    used = shares(run)
    normalised = [used[tenant] / weights[place] for place, tenant in enumerate("abc")]
    assert max(normalised) - min(normalised) <= 2 * max(run.batch_seconds) / min(weights)


def scheduler(now: float = 0.0, **limits: int) -> Scheduler:
    return Scheduler(Limits(**({"max_rows": 8} | limits)), CostModel(), MemoryModel(), lambda: now)  # type: ignore[arg-type]


def encode_all(subject: Scheduler) -> list[str]:
    """Does the encodings that come before the next step, and returns whose they were."""
    found = []
    while isinstance(work := subject.next_work(), Encode):
        found.append(work.story_id)
        subject.encoded(work.story_id)
    return found


def step(subject: Scheduler) -> tuple[str, ...]:
    """Does all work up to the next step, and the step."""
    work: Work | None = subject.next_work()
    while not isinstance(work, Step):
        match work:
            case Encode(story_id):
                subject.encoded(story_id)
            case Preview(story_id):
                subject.previewed(story_id)
            case Decode(story_id, frames):
                subject.decoded(story_id, frames)
            case None:
                return ()
        work = subject.next_work()
    subject.stepped(work.story_ids, 0.1)
    return work.story_ids


def test_stories_that_fit_share_a_step() -> None:
    subject = scheduler()
    for story_id in ("a", "b", "c"):
        subject.submit(spec(story_id, frames=2))
    step(subject)
    step(subject)
    assert set(step(subject)) == {"a", "b", "c"}


def test_a_story_larger_than_the_limit_runs_alone() -> None:
    subject = scheduler()
    subject.submit(spec("huge", frames=100, steps=2))
    subject.submit(spec("small", steps=2))
    assert {step(subject) for _ in range(4)} == {("huge",), ("small",)}


def test_incompatible_stories_do_not_block_each_other() -> None:
    subject = scheduler()
    subject.submit(spec("first", key="x", frames=8, steps=40))
    subject.submit(spec("second", key="x", frames=8, steps=40))
    subject.submit(spec("third", key="y", steps=2))
    assert [step(subject) for _ in range(3)] == [("third",), ("third",), ("first",)]


def test_riders_do_not_use_up_the_turn_of_a_story_that_waited_too_long() -> None:
    """The other tenant opens every batch, and this one's large rider would keep it in debt for ever."""
    subject = scheduler(patience=2)
    subject.submit(spec("waiting", tenant="a", key="y", frames=8, steps=50))
    assert step(subject) == ("waiting",)
    subject.submit(spec("rider", tenant="a", key="x", frames=7, steps=40))
    subject.submit(spec("opener", tenant="b", key="x", frames=1, steps=1000))
    batches = [step(subject) for _ in range(40)]
    assert set(batches[0]) | set(batches[1]) >= {"rider", "opener"}
    waits = [index for index, batch in enumerate(batches) if batch == ("waiting",)]
    assert len(waits) >= 2


def test_a_suspect_takes_its_steps_with_nobody_else() -> None:
    subject = scheduler(patience=1)
    subject.submit(spec("suspect", alone=True))
    subject.submit(spec("a"))
    subject.submit(spec("b"))
    batches = [step(subject) for _ in range(8)]
    assert ("suspect",) in batches
    assert all(batch == ("suspect",) or "suspect" not in batch for batch in batches)


def test_a_short_story_overtakes_a_long_one_at_the_next_step() -> None:
    subject = scheduler()
    subject.submit(spec("long", frames=8, steps=50))
    assert step(subject) == ("long",)
    subject.submit(spec("short", frames=1, steps=2))
    assert [step(subject) for _ in range(3)] == [("short",), ("short",), ("long",)]


def test_a_story_that_would_not_run_yet_is_not_encoded() -> None:
    subject = scheduler()
    subject.submit(spec("first", frames=8, steps=10))
    assert step(subject) == ("first",)
    subject.submit(spec("later", frames=8, steps=20))
    assert step(subject) == ("first",)
    assert subject.status("later") is Status.QUEUED


def test_a_more_urgent_story_goes_first() -> None:
    subject = scheduler()
    subject.submit(spec("normal", frames=8, steps=10))
    subject.submit(spec("high", frames=8, steps=30, priority=Priority.HIGH))
    subject.submit(spec("low", frames=8, steps=5, priority=Priority.LOW))
    assert step(subject) == ("high",)


def calibrated_cost(per_row: float = 0.01, base: float = 0.02) -> CostModel:
    cost = CostModel()
    for rows in (1, 2, 4, 8, 16, 3, 5, 7, 9, 11):
        cost.observe_step(spec("x", frames=rows, pixels=2**20).shape.load, base + per_row * rows)
    return cost


def test_a_near_deadline_goes_first_while_it_can_be_met() -> None:
    now = 0.0
    subject = Scheduler(Limits(max_rows=8), calibrated_cost(), MemoryModel(), lambda: now)
    one = spec("dated", frames=8, steps=20, pixels=2**20, deadline=30.0)
    subject.submit(one)
    subject.submit(spec("short", frames=8, steps=5, pixels=2**20))
    assert step(subject) == ("short",)
    now = 27.0  # It takes about two seconds of steps, and its decoding: now there is no time to lose.
    assert step(subject) == ("dated",)
    now = 29.99
    assert step(subject) == ("short",), "what cannot be met any more holds up nobody"
    assert subject.expired() == []
    now = 31.0
    assert subject.expired() == ["dated"]


def test_on_a_full_device_one_story_is_not_held_up_by_others() -> None:
    """Where a batch saves nothing, sharing a step only delays; where rows are cheap, stories share."""
    for base, expected in ((0.0, 1), (0.5, 3)):
        subject = Scheduler(Limits(max_rows=8), calibrated_cost(base=base), MemoryModel(), lambda: 0.0)
        for story_id in ("a", "b", "c"):
            subject.submit(spec(story_id, frames=2, steps=5, pixels=2**20))
        for _ in range(3):
            batch = step(subject)
        assert len(batch) == expected


def test_a_batch_stops_at_a_bucket_when_the_next_is_mostly_padding() -> None:
    cost = CostModel((1, 2, 4, 8, 16, 32))
    for rows in (1, 2, 4, 8, 16, 32, 1, 2, 4, 8):
        cost.observe_step(spec("x", frames=rows, pixels=2**20).shape.load, 0.005 + 0.01 * rows)
    subject = Scheduler(Limits(max_rows=17), cost, MemoryModel(), lambda: 0.0)
    for index in range(17):
        subject.submit(spec(str(index), steps=50, pixels=2**20))
    rows = [len(step(subject)) for _ in range(12)]
    assert set(rows) <= {1, 2, 4, 8, 16}


def test_a_batch_out_of_memory_is_tried_again_in_smaller_ones() -> None:
    subject = scheduler()
    for story_id in ("a", "b", "c", "d"):
        subject.submit(spec(story_id, frames=2, steps=20))
    while len(step(subject)) < 4:
        pass
    work = subject.next_work()
    assert isinstance(work, Step)
    assert len(work.story_ids) == 4
    assert subject.out_of_memory(work.story_ids)
    assert len(step(subject)) == 3
    assert not subject.out_of_memory(("a",)), "alone it cannot be made smaller"


def test_no_more_stories_are_active_than_allowed() -> None:
    subject = scheduler(max_active_stories=2)
    for index in range(6):
        subject.submit(spec(str(index), frames=2, steps=10))
    for _ in range(5):
        assert len(step(subject)) <= 2
    waiting = [index for index in range(6) if subject.status(str(index)) is Status.QUEUED]
    assert len(waiting) == 4


def test_a_story_waits_for_room_no_longer_than_its_patience() -> None:
    """A large story that finds no room keeps later ones out once it has waited long enough."""
    subject = scheduler(max_active_rows=8, queue_patience=10)
    subject.submit(spec("small", frames=2, steps=5))
    step(subject)
    subject.submit(spec("large", frames=8, steps=3))
    order = []
    for index in range(60):
        subject.submit(spec(f"s{index}", frames=2, steps=5))
        order.append(step(subject))
    assert ("large",) in order[:40]


def test_previews_come_at_their_interval_and_frames_once() -> None:
    run = Run(Limits(max_rows=8), [Traffic(spec("a", frames=3, steps=6, preview_interval=2))]).go()
    run.check_the_end()
    assert run.previews["a"] == 2  # After steps 2 and 4; after step 6 come the pictures themselves.
    assert run.frames["a"] == [0, 1, 2]


def test_a_short_story_is_not_decoded_behind_all_frames_of_a_long_one() -> None:
    subject = scheduler(max_active_rows=64)
    subject.submit(spec("long", frames=40, done_steps=4))
    assert encode_all(subject) == ["long"]
    subject.decoded("long", [0])
    subject.submit(spec("short", frames=1, done_steps=4))
    decoded = []
    while (work := subject.next_work()) is not None:
        if isinstance(work, Encode):
            subject.encoded(work.story_id)
        else:
            assert isinstance(work, Decode)
            subject.decoded(work.story_id, work.frames)
            decoded.append(work.story_id)
    assert decoded.index("short") <= 2
    assert subject.idle


def test_a_cancelled_story_frees_its_room_at_once() -> None:
    subject = scheduler(max_active_stories=1)
    subject.submit(spec("a", frames=8))
    assert step(subject) == ("a",)
    subject.submit(spec("b"))
    assert step(subject) == ("a",)
    assert subject.queue_positions() == {"b": 0}
    assert subject.remove("a", Status.CANCELLED)
    assert not subject.remove("a", Status.CANCELLED)
    assert step(subject) == ("b",)


def test_a_story_that_failed_in_a_batch_is_skipped_in_its_report() -> None:
    subject = scheduler()
    for story_id in ("a", "b"):
        subject.submit(spec(story_id, steps=2))
    step(subject)
    work = subject.next_work()
    while not isinstance(work, Step):
        assert isinstance(work, Encode)
        subject.encoded(work.story_id)
        work = subject.next_work()
    subject.remove("a", Status.FAILED)
    subject.stepped(work.story_ids, 0.1)
    assert subject.status("a") is None
    assert subject.status("b") is Status.DENOISING


def test_the_queue_is_told_in_the_order_in_which_it_will_run() -> None:
    subject = scheduler(max_active_stories=1)
    subject.submit(spec("running", frames=8))
    step(subject)
    subject.submit(spec("long", steps=50))
    subject.submit(spec("short", steps=2))
    subject.submit(spec("other", tenant="u", steps=80))
    assert subject.queue_positions() == {"other": 0, "short": 1, "long": 2}


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="set it to 1 or more"):
        Limits(max_rows=0)
    with pytest.raises(ValueError, match="set it to max_rows"):
        Limits(max_rows=8, max_active_rows=4)
    subject = scheduler()
    subject.submit(spec("a"))
    with pytest.raises(ValueError, match="twice"):
        subject.submit(spec("a"))
    with pytest.raises(ValueError, match="is queued, not encoding"):
        subject.encoded("a")
    with pytest.raises(ValueError, match="finished, failed or cancelled"):
        subject.remove("a", Status.QUEUED)
    with pytest.raises(ValueError, match="1 or more"):
        spec("a", frames=0)
    with pytest.raises(ValueError, match="above 0"):
        spec("a", weight=0)
    with pytest.raises(ValueError, match="start it anew"):
        replace(spec("a", steps=4), done_steps=5)
