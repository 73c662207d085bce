"""Writes what a run found: the raw values as JSON, tables like the papers' as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.metrics import Interval
from benchmarks.stories.methods import Method
from benchmarks.stories.metric import Column, LeftOut
from benchmarks.stories.orders import Pair, pairs
from benchmarks.stories.papers import ORDERS
from benchmarks.stories.scores import Scored, differences, summary

_SIZES = {1: "One character", 2: "Two characters", 3: "Three characters"}


@dataclass(frozen=True)
class Group:
    """The stories of so many characters, row by row."""

    people: int
    rows: Mapping[str, Sequence[Scored]]

    @property
    def heading(self) -> str:
        """Of its table."""
        size = _SIZES.get(self.people, f"{self.people} characters")
        return f"{size}, stories: {max(len(stories) for stories in self.rows.values())}"

    def figures(self) -> dict[str, dict[str, Interval]]:
        """Each row's figures."""
        return {name: summary(stories) for name, stories in self.rows.items()}

    def pairs(self) -> list[Pair]:
        """What the papers say of methods that are here, held against the rows."""
        return list(pairs(ORDERS, self.rows))


@dataclass(frozen=True)
class Report:
    """All that a run found.

    Attributes:
        columns: of the tables, in their order.
        methods: what each row's method sets; a row without one is of true pictures.
        rows: for each row, the stories in one order.
        left_out: the columns that nobody gave weights for.
        facts: command, versions, hardware, settings.
    """

    columns: tuple[Column, ...]
    methods: Mapping[str, Method]
    rows: Mapping[str, Sequence[Scored]]
    left_out: Sequence[LeftOut]
    facts: Mapping[str, Any]

    def groups(self) -> Iterator[Group]:
        """The rows once for each number of characters that stories have."""
        sizes = sorted({story.outcome.asked.people for stories in self.rows.values() for story in stories})
        for size in sizes:
            rows = {
                name: [story for story in stories if story.outcome.asked.people == size]
                for name, stories in self.rows.items()
            }
            yield Group(size, rows)

    def notes(self) -> list[str]:
        """What a reader of the tables has to know: columns that are not there, stories that were refused."""
        found = {key for stories in self.rows.values() for story in stories for key in story.figures()}
        empty = [column.heading for column in self.columns if column.key not in found]
        notes = [str(line) for line in self.left_out]
        if empty:
            notes.append(f"no story has a value for: {', '.join(empty)}")
        refusals = [
            f"refused: {name}, {story.outcome.asked.name}: {story.outcome.refused}"
            for name, stories in self.rows.items()
            for story in stories
            if story.outcome.refused
        ]
        return notes + refusals


def shown(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Interval]]) -> list[Column]:
    """The columns that any row has a figure for."""
    return [column for column in columns if any(column.key in figures for figures in rows.values())]


def cell(column: Column, figure: Interval | None) -> str:
    """`mean [low, high]`, as tables have it."""
    if figure is None:
        return "-"
    mean, low, high = (f"{value * column.scale:.{column.digits}f}" for value in (figure.mean, figure.low, figure.high))
    return mean if mean == low == high else f"{mean} [{low}, {high}]"


def markdown_table(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Interval]]) -> str:
    """A row a method, a column a figure, as mean [95 % interval]."""
    kept = shown(columns, rows)
    lines = ["| method | " + " | ".join(column.heading for column in kept) + " |", "|---" * (len(kept) + 1) + "|"]
    for name, figures in rows.items():
        lines.append(f"| {name} | " + " | ".join(cell(column, figures.get(column.key)) for column in kept) + " |")
    return "\n".join(lines)


def orders_table(columns: Sequence[Column], found: Sequence[Pair]) -> str:
    """A row a pair of methods that a paper's table orders: the difference here, and whether it is as there."""
    known = {column.key: column for column in columns}
    verdicts = Counter(pair.verdict for pair in found)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    lines = [
        f"Of {len(found)} pairs of methods that a paper orders: {counts}.",
        "",
        "| paper | its figure | here | pair | difference | verdict |",
        "|---" * 6 + "|",
    ]
    for pair in found:
        order, column = pair.order, known[pair.order.column]
        lines.append(
            f"| {order.source} | {order.figure} | {column.heading} | {pair.better} over {pair.worse} | "
            f"{cell(column, pair.difference)} | {pair.verdict} |"
        )
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The page of a run."""
    facts = report.facts
    groups = list(report.groups())
    tables = [f"## {group.heading}\n\n{markdown_table(report.columns, group.figures())}" for group in groups]
    orders = [
        f"## The papers' orders: {group.heading.lower()}\n\n{orders_table(report.columns, found)}"
        for group in groups
        if (found := group.pairs())
    ]
    definitions = "\n".join(f"- **{column.heading}**: {column.definition}." for column in report.columns)
    methods = "\n".join(f"- **{name}**: {method.about}" for name, method in report.methods.items())
    notes = "\n".join(f"- {note}" for note in report.notes())
    return "\n\n".join(
        [
            f"# {facts['benchmark']}, {facts['model']}",
            f"`{facts['command']}`, {facts['date']}",
            *tables,
            "Means over stories, of a story's mean over its pictures, with bootstrap 95 % intervals over stories.",
            *orders,
            f"## Methods\n\n{methods}",
            f"## Columns\n\n{definitions}",
            *([f"## Not here\n\n{notes}"] if notes else []),
        ]
    ) + "\n"  # fmt: skip


def document(report: Report, *, texts: bool = True) -> dict[str, Any]:
    """The JSON record: how it was made, the figures by number of characters, and the values of every picture.

    Args:
        texts: with the prompts of the pictures.
    """
    baseline = next(iter(report.methods))
    groups = list(report.groups())
    return dict(report.facts) | {
        "methods": {name: asdict(method) for name, method in report.methods.items()},
        "columns": {column.key: asdict(column) for column in report.columns},
        "notes": report.notes(),
        "figures": {
            str(group.people): {name: _plain(own) for name, own in group.figures().items()} for group in groups
        },
        "differences": {
            str(group.people): {
                name: _plain(differences(group.rows[name], group.rows[baseline]))
                for name in report.methods
                if name != baseline
            }
            for group in groups
        },
        "orders": {str(group.people): [_pair(pair) for pair in group.pairs()] for group in groups},
        "stories": {name: [_story(story, texts) for story in stories] for name, stories in report.rows.items()},
    }


def _plain(figures: Mapping[str, Interval]) -> dict[str, Any]:
    return {key: asdict(figure) for key, figure in figures.items()}


def _pair(pair: Pair) -> dict[str, Any]:
    return asdict(pair) | {"verdict": pair.verdict}


def _story(story: Scored, texts: bool) -> dict[str, Any]:
    outcome = story.outcome
    return {
        "name": outcome.asked.name,
        "characters": outcome.asked.people,
        **({"prompts": story.prompts} if texts else {}),
        "refused": outcome.refused,
        "cost": None if outcome.cost is None else asdict(outcome.cost),
        "values": dict(story.values),
    }


def write(report: Report, out: Path, *, texts: bool = True) -> None:
    """Writes results.json, with or without the prompts, and results.md, which has none."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document(report, texts=texts), indent=1, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(report), encoding="utf-8")
