"""What a metric is: some columns of the table, and a value in each for every picture of a story."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from benchmarks.stories.similarity import PerPicture
from benchmarks.stories.stories import MadeStory


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: its name in the JSON record.
        heading: its name in tables.
        definition: what it is, and whose definition it follows.
        scale: what values are multiplied by in tables, as the papers do.
        digits: behind the point, in tables.
    """

    key: str
    heading: str
    definition: str
    scale: float = 1.0
    digits: int = 3


def percent(key: str, heading: str, definition: str) -> Column:
    """A column of a hundredfold cosine, as the papers show it."""
    return Column(key, heading, definition, 100.0, 1)


class Metric(Protocol):
    """Scores stories. `columns` are those that `measure` has values for; where a story has none of one, the key is
    left out."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    def measure(self, story: MadeStory) -> dict[str, PerPicture]:
        """For each key a value for each picture, unscaled; None for a picture that has none."""
        ...


@dataclass(frozen=True)
class LeftOut:
    """Columns that a run goes without, and what to give so that it has them."""

    headings: tuple[str, ...]
    wanted: str

    def __str__(self) -> str:
        return f"left out: {', '.join(self.headings)}; {self.wanted}"


class WeightsError(ValueError):
    """Weights for a metric cannot be used. The message says what to give."""
