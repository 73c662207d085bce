"""Virtual times: who used least by weight is next; absence earns nothing, and debt is forgiven beyond a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom_server.scheduler.fairness import FairShare


@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=5),
    st.lists(st.floats(0.01, 1.0), min_size=50, max_size=200),
)
def test_served_time_follows_the_weights(weights: list[float], costs: list[float]) -> None:
    """At every moment the served seconds by weight of any two differ by the longest piece by weight at most."""
    fair = FairShare()
    served = dict.fromkeys(map(str, range(len(weights))), 0.0)
    for tenant, weight in zip(served, weights, strict=True):
        fair.join(tenant, weight)
    for cost in costs:
        tenant = fair.order(served)[0]
        fair.serve(tenant)
        fair.charge(tenant, cost)
        served[tenant] += cost / weights[int(tenant)]
        assert max(served.values()) - min(served.values()) <= max(costs) / min(weights) + 1e-9


def test_who_comes_back_has_saved_up_nothing() -> None:
    fair = FairShare()
    fair.join("steady", 1)
    fair.join("absent", 1)
    fair.leave("absent")
    for _ in range(10):
        fair.serve("steady")
        fair.charge("steady", 1)
    fair.join("absent", 1)
    turns = 0
    while fair.order(["steady", "absent"])[0] == "absent":
        fair.serve("absent")
        fair.charge("absent", 1)
        turns += 1
    assert turns <= 2


def test_using_what_others_leave_is_not_punished_for_ever() -> None:
    fair = FairShare(debt_seconds=3)
    fair.join("a", 1)
    fair.join("b", 1)
    for _ in range(1000):  # a rides in b's batches and uses far more of each.
        fair.serve("b")
        fair.charge("a", 1)
        fair.charge("b", 0.001)
    turns = 0
    while fair.order(["a", "b"])[0] == "b":
        fair.serve("b")
        fair.charge("b", 0.5)
        turns += 1
    assert turns <= 8


def test_debt_outlives_a_short_absence() -> None:
    fair = FairShare()
    fair.join("a", 1)
    fair.join("b", 1)
    fair.charge("a", 5)
    fair.leave("a")
    fair.join("a", 1)
    assert fair.order(["a", "b"]) == ["b", "a"]


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="set it above 0"):
        FairShare(debt_seconds=0)
