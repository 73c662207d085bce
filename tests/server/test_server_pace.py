"""When checkpoints are due, on a clock that the tests turn."""

from hypothesis import given
from hypothesis import strategies as st

from storyloom_server.engine.pace import CheckpointPace


def test_both_steps_and_seconds_must_have_passed() -> None:
    pace = CheckpointPace(steps=5, seconds=10.0, last_step=0, last_time=100.0)
    assert not pace.due(5, 109.9)
    assert not pace.due(4, 110.0)
    assert pace.due(7, 110.0)
    assert not pace.due(12, 119.9)
    assert pace.due(12, 120.0)


def test_a_story_that_goes_on_counts_from_where_it_goes_on() -> None:
    pace = CheckpointPace(steps=5, seconds=0.0, last_step=20, last_time=0.0)
    assert [step for step in range(21, 40) if pace.due(step, 0.0)] == [25, 30, 35]


@given(
    steps=st.integers(0, 8),
    seconds=st.floats(0, 20),
    waits=st.lists(st.floats(0, 10), max_size=60),
)
def test_a_crash_costs_no_more_than_it_may(steps: int, seconds: float, waits: list[float]) -> None:
    pace = CheckpointPace(steps, seconds, last_step=0, last_time=0.0)
    now, last_step, last_time = 0.0, 0, 0.0
    for step, wait in enumerate(waits, 1):
        now += wait
        if pace.due(step, now):
            assert steps > 0
            assert step - last_step >= steps
            assert now - last_time >= seconds
            last_step, last_time = step, now
        elif steps:
            assert step - last_step < steps or now - last_time < seconds
