"""The scheduler's promises, on random traffic: nobody starves, no story is split, the row limit holds, all finish."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_server.scheduler import Scheduler, Status


@dataclass(frozen=True)
class Traffic:
    """One story: when it comes (loop turn), what it takes, and when it is given up, if ever."""

    arrives: int
    rows: int
    frames: int
    steps: int
    key: str
    cancelled_at: int | None


stories = st.builds(
    Traffic,
    arrives=st.integers(0, 20),
    rows=st.integers(1, 12),
    frames=st.integers(1, 4),
    steps=st.integers(1, 5),
    key=st.sampled_from("abc"),
    cancelled_at=st.none() | st.integers(0, 30),
)


@dataclass
class Simulation:
    """Drives a scheduler as the engine does, one turn of its loop at a time, and keeps a record."""

    traffic: list[Traffic]
    max_rows: int
    batches: list[tuple[str, ...]] = field(default_factory=list)
    longest_wait: int = 0
    most_ready: int = 0
    admitted: list[str] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    decoded: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> None:
        scheduler = Scheduler(self.max_rows)
        steps_left = {str(index): story.steps for index, story in enumerate(self.traffic)}
        idle_turns: dict[str, int] = {}
        last_arrival = max(story.arrives for story in self.traffic)
        turn = 0
        while turn <= last_arrival or not scheduler.idle:
            assert turn < 5000, "the scheduler never finishes this traffic"
            self._arrivals(scheduler, turn)
            story_id = scheduler.admit()
            if story_id is not None:
                self.admitted.append(story_id)
                story = self.traffic[int(story_id)]
                scheduler.encoded(story_id, key=story.key, rows=story.rows)
            ready = [s for s in steps_left if scheduler.status(s) is Status.DENOISING]
            batch = scheduler.next_batch()
            assert bool(batch) == bool(ready), "a step is made exactly when a story can take one"
            self._step(scheduler, batch, ready, steps_left, idle_turns)
            self._decode(scheduler)
            turn += 1

    def _arrivals(self, scheduler: Scheduler, turn: int) -> None:
        for index, story in enumerate(self.traffic):
            story_id = str(index)
            if story.arrives == turn:
                waiting = len(scheduler.queue_positions())
                assert scheduler.submit(story_id, rows=story.rows, frames=story.frames) == waiting
            if (
                story.cancelled_at is not None
                and turn == max(story.cancelled_at, story.arrives)
                and scheduler.remove(story_id, Status.CANCELLED)
            ):
                self.cancelled.add(story_id)

    def _step(
        self,
        scheduler: Scheduler,
        batch: tuple[str, ...],
        ready: list[str],
        steps_left: dict[str, int],
        idle_turns: dict[str, int],
    ) -> None:
        if batch:
            self.batches.append(batch)
        for story_id in ready:
            idle_turns[story_id] = 0 if story_id in batch else idle_turns.get(story_id, 0) + 1
            self.longest_wait = max(self.longest_wait, idle_turns[story_id])
        self.most_ready = max(self.most_ready, len(ready))
        for story_id in batch:
            steps_left[story_id] -= 1
            if steps_left[story_id] == 0:
                scheduler.denoised(story_id)

    def _decode(self, scheduler: Scheduler) -> None:
        for story_id, frame in scheduler.next_frames():
            self.decoded.setdefault(story_id, []).append(frame)
            if scheduler.frame_decoded(story_id):
                self.finished.add(story_id)


@settings(max_examples=150, deadline=None)
@given(st.lists(stories, min_size=1, max_size=12), st.integers(1, 16))
def test_every_promise_holds_on_random_traffic(traffic: list[Traffic], max_rows: int) -> None:
    run = Simulation(traffic, max_rows)
    run.run()

    everyone = {str(index) for index in range(len(traffic))}
    assert run.finished | run.cancelled == everyone
    assert not run.finished & run.cancelled
    for story_id in run.finished:
        story = traffic[int(story_id)]
        assert sum(story_id in batch for batch in run.batches) == story.steps
        assert run.decoded[story_id] == list(range(story.frames))
    for batch in run.batches:
        assert len(set(batch)) == len(batch)
        assert len({traffic[int(story_id)].key for story_id in batch}) == 1
        rows = sum(traffic[int(story_id)].rows for story_id in batch)
        assert rows <= max_rows or len(batch) == 1
    arrival_order = sorted(run.admitted, key=lambda story_id: (traffic[int(story_id)].arrives, int(story_id)))
    assert run.admitted == arrival_order
    assert run.longest_wait < max(run.most_ready, 1), "somebody waited while others were stepped twice"


def denoising(scheduler: Scheduler, story_id: str, *, rows: int, key: str = "k", frames: int = 1) -> None:
    scheduler.submit(story_id, rows=rows, frames=frames)
    assert scheduler.admit() == story_id
    scheduler.encoded(story_id, key=key, rows=rows)


def test_stories_that_fit_share_a_step() -> None:
    scheduler = Scheduler(max_rows=8)
    for story_id in ("a", "b", "c"):
        denoising(scheduler, story_id, rows=2)
    assert scheduler.next_batch() == ("a", "b", "c")


def test_stories_that_do_not_fit_take_turns() -> None:
    scheduler = Scheduler(max_rows=8)
    denoising(scheduler, "a", rows=6)
    denoising(scheduler, "b", rows=6)
    assert [scheduler.next_batch() for _ in range(4)] == [("a",), ("b",), ("a",), ("b",)]


def test_keys_take_turns() -> None:
    scheduler = Scheduler(max_rows=8)
    denoising(scheduler, "a", rows=1, key="x")
    denoising(scheduler, "b", rows=1, key="y")
    denoising(scheduler, "c", rows=1, key="x")
    assert [scheduler.next_batch() for _ in range(4)] == [("a", "c"), ("b",), ("a", "c"), ("b",)]


def test_a_story_larger_than_the_limit_runs_alone() -> None:
    scheduler = Scheduler(max_rows=4)
    denoising(scheduler, "small", rows=1)
    denoising(scheduler, "huge", rows=100)
    assert [scheduler.next_batch() for _ in range(3)] == [("small",), ("huge",), ("small",)]


def test_the_queue_waits_while_a_step_is_full() -> None:
    scheduler = Scheduler(max_rows=4)
    denoising(scheduler, "a", rows=4)
    assert scheduler.submit("b", rows=1, frames=1) == 0
    assert scheduler.submit("c", rows=1, frames=1) == 1
    assert scheduler.admit() is None
    scheduler.next_batch()
    scheduler.denoised("a")
    assert scheduler.admit() == "b"
    assert scheduler.queue_positions() == {"c": 0}


def test_a_cancelled_story_frees_its_rows_at_once() -> None:
    scheduler = Scheduler(max_rows=4)
    denoising(scheduler, "a", rows=4)
    scheduler.submit("b", rows=2, frames=1)
    removed = scheduler.remove("a", Status.CANCELLED)
    assert removed is not None
    assert removed.status is Status.CANCELLED
    assert scheduler.rows_in_use == 0
    assert scheduler.admit() == "b"
    assert scheduler.remove("a", Status.CANCELLED) is None


def test_a_decoding_backlog_is_worked_off_faster_than_one_frame_a_turn() -> None:
    scheduler = Scheduler(max_rows=100)
    for index in range(4):
        denoising(scheduler, str(index), rows=12, frames=12)
        scheduler.denoised(str(index))
    assert len(scheduler.next_frames()) == 6
    assert scheduler.next_frames()[0] == ("0", 0)


@pytest.mark.parametrize(("rows", "frames"), [(0, 1), (1, 0)])
def test_a_story_without_rows_or_frames_is_refused(rows: int, frames: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Scheduler(max_rows=4).submit("a", rows=rows, frames=frames)


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="set it to 1 or more"):
        Scheduler(max_rows=0)
    scheduler = Scheduler(max_rows=4)
    scheduler.submit("a", rows=1, frames=1)
    with pytest.raises(ValueError, match="twice"):
        scheduler.submit("a", rows=1, frames=1)
    with pytest.raises(ValueError, match="is queued, not denoising"):
        scheduler.denoised("a")
    with pytest.raises(ValueError, match="finished, failed or cancelled"):
        scheduler.remove("a", Status.QUEUED)
