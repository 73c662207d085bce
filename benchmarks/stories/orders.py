"""Holds the papers' orders against a run: pair by pair, as paired differences over the stories that both have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from benchmarks.quality.metrics import Interval
from benchmarks.stories.papers import Order
from benchmarks.stories.scores import Scored, differences

LEAST_STORIES = 5
"""Fewer tell nothing: an interval over one or two stories is as wide as they happen to differ."""

Verdict = Literal["as in the paper", "the other way round", "not told apart"]


@dataclass(frozen=True)
class Pair:
    """Two methods of which a paper puts `better` first, and the figure of it minus that of `worse` here."""

    order: Order
    better: str
    worse: str
    difference: Interval

    @property
    def verdict(self) -> Verdict:
        """By the 95 % interval of the difference: above 0, below, or neither; of one story there is none."""
        if self.difference.stories < 2:
            return "not told apart"
        if self.difference.low > 0:
            return "as in the paper"
        return "the other way round" if self.difference.high < 0 else "not told apart"


def pairs(orders: Iterable[Order], rows: Mapping[str, Sequence[Scored]]) -> Iterator[Pair]:
    """Every pair of every order whose methods are rows with a figure for it, in enough stories.

    Args:
        orders: of the papers.
        rows: for each method the stories, in one order.
    """
    for order in orders:
        for better, worse in combinations([name for name in order.methods if name in rows], 2):
            found = differences(rows[better], rows[worse]).get(order.column)
            if found is not None and found.stories >= LEAST_STORIES:
                yield Pair(order, better, worse, found)
