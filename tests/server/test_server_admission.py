"""Admission: bounded queues, deadlines known beforehand, and an estimate that the scheduler then keeps."""

from __future__ import annotations

import random

import pytest

from storyloom_server.scheduler import (
    Accepted,
    Admission,
    CostCoefficients,
    CostModel,
    Limits,
    Priority,
    Progress,
    Reason,
    Refused,
)
from tests.server.scheduling import PIXELS, Run, Traffic, VirtualDevice, spec

RULES = Admission(max_open=10, max_open_per_tenant=4, max_rows=8)
DEVICE = VirtualDevice()


def costs(calibrated: bool = True, base: float = DEVICE.base) -> CostCoefficients:
    """Those of the virtual device of ``scheduling``."""
    return CostCoefficients(
        base=base, per_row_megapixel=DEVICE.per_row * 2**20 / PIXELS, per_cross=0.0, encode=(DEVICE.encode, 0.0),
        decode=(DEVICE.decode, 0.0), buckets=(), calibrated=calibrated,
    )  # fmt: skip


def test_an_idle_server_takes_the_time_of_the_story_itself() -> None:
    decision = RULES.decide(spec("a", frames=2, steps=10), [], costs(), now=5.0)
    assert decision == Accepted(pytest.approx(0.03 + 10 * (0.02 + 2 * 0.01) + 2 * 0.01))


def test_nothing_is_refused_by_an_estimate_that_nobody_made() -> None:
    decision = RULES.decide(spec("a", steps=1000, deadline=0.1), [], costs(calibrated=False), now=0.0)
    assert decision == Accepted(None)
    assert not CostModel().calibrated


def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate() -> None:
    long = [Progress(spec(str(i), tenant=str(i), key="other", frames=8, steps=100)) for i in range(5)]
    new = spec("a", frames=8, steps=50, deadline=10.0)
    assert isinstance(RULES.decide(new, [], costs(), now=0.0), Accepted)
    refused = RULES.decide(new, long, costs(), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.DEADLINE
    assert refused.estimated_seconds is not None
    assert refused.estimated_seconds > 10
    assert refused.retry_seconds == pytest.approx(refused.estimated_seconds - 10)
    hopeless = RULES.decide(new, long, costs(), now=9.0)
    assert isinstance(hopeless, Refused)
    assert hopeless.retry_seconds is None, "it could not be met on an idle server either"


def test_a_full_queue_tells_when_a_place_will_be_free() -> None:
    open_stories = [Progress(spec(str(i), tenant=str(i), steps=100), done_steps=100 - i) for i in range(10)]
    refused = RULES.decide(spec("a"), open_stories, costs(), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.QUEUE_FULL
    assert refused.retry_seconds == pytest.approx(0.01)  # The first has only its frame to decode.


def test_one_tenant_cannot_take_all_places() -> None:
    mine = [Progress(spec(str(i), tenant="me")) for i in range(4)]
    refused = RULES.decide(spec("a", tenant="me"), mine, costs(), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.TENANT_LIMIT
    assert isinstance(RULES.decide(spec("a", tenant="you"), mine, costs(), now=0.0), Accepted)


def test_a_story_that_can_never_fit_is_refused_for_good() -> None:
    rules = Admission(max_open=10, max_open_per_tenant=4, max_rows=8, max_story_row_megapixels=4.0)
    refused = rules.decide(spec("a", frames=20), [], costs(), now=0.0)
    assert refused == Refused(Reason.TOO_LARGE, None, None)
    assert isinstance(rules.decide(spec("a", frames=16), [], costs(), now=0.0), Accepted)


def estimate(new: Traffic, others: list[Progress]) -> float:
    decision = Admission(100, 100, 8).decide(new.spec, others, costs(), now=0.0)
    assert isinstance(decision, Accepted)
    assert decision.estimated_seconds is not None
    return decision.estimated_seconds


def test_urgency_and_little_work_shorten_the_wait() -> None:
    others = [Progress(spec(str(i), frames=8, steps=50)) for i in range(5)]
    normal = estimate(Traffic(spec("a", frames=8, steps=20)), others)
    assert estimate(Traffic(spec("a", frames=8, steps=20, priority=Priority.HIGH)), others) < normal
    assert estimate(Traffic(spec("a", frames=8, steps=10)), others) < normal
    assert estimate(Traffic(spec("a", frames=8, steps=20)), others[:2]) < normal


def test_another_tenants_queue_delays_by_its_share_only() -> None:
    crowd = [Progress(spec(str(i), tenant="crowd", key="other", frames=8, steps=50)) for i in range(50)]
    new = Traffic(spec("a", frames=8, steps=50))
    assert estimate(new, crowd) <= 2.01 * estimate(new, [])


@pytest.mark.parametrize("seed", range(20))
def test_the_estimate_is_kept_by_the_scheduler(seed: int) -> None:
    """When nothing comes later, a story is done no later than a quarter (and one long step) after its estimate."""
    draw = random.Random(seed)  # noqa: S311
    traffic = [
        Traffic(spec(str(i), tenant=draw.choice("ab"), key=draw.choice("xxy"), frames=draw.randint(1, 8),
                     steps=draw.randint(4, 30)))
        for i in range(draw.randint(1, 12))
    ]  # fmt: skip
    new = Traffic(spec("new", tenant="a", key="x", frames=draw.randint(1, 8), steps=draw.randint(4, 30)))
    promised = estimate(new, [Progress(story.spec) for story in traffic])
    run = Run(Limits(max_rows=8), [*traffic, new], VirtualDevice()).go()
    assert run.finished["new"] <= 1.25 * promised + 0.1
