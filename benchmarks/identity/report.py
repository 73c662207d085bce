"""Writes what a run found: raw numbers as JSON, tables as Markdown, contact sheets to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.identity.cases import IdentityCase
from benchmarks.identity.scores import IdentityScore
from benchmarks.identity.settings import PAIRS
from benchmarks.quality.generate import Pictures
from benchmarks.quality.metrics import Interval, bootstrap

COLUMNS = {
    "to_reference": "face to reference",
    "to_other": "face to another's",
    "apart": "own less another's",
    "among": "faces among frames",
    "found": "faces found",
    "face_attributes": "face attributes",
    "clothes_attributes": "clothes attributes",
    "text": "scene and time",
    "background": "background distance",
    "poses": "poses told apart",
}
ATTRIBUTES = ("skin", "hair style", "hair colour", "glasses", "facial hair", "top", "top colour")
"""What references show and short prompts leave open."""

Scores = Mapping[tuple[str, int], Sequence[IdentityScore]]
"""By setting and number of characters; stories are in the same order in all settings."""
Figures = dict[str, Interval]


def summary(scores: Sequence[IdentityScore]) -> Figures:
    """Each figure over the stories that have it, with a bootstrap 95 % interval."""
    columns = {name: [getattr(one, name) for one in scores] for name in COLUMNS}
    return _intervals(columns)


def attributes(scores: Sequence[IdentityScore]) -> Figures:
    """Each attribute over the stories that show it."""
    return _intervals({name: [one.attributes.get(name) for one in scores] for name in ATTRIBUTES})


def differences(scores: Sequence[IdentityScore], others: Sequence[IdentityScore]) -> Figures:
    """Each figure less the others' of the same story; the interval tells whether the setting changes it."""
    pairs = list(zip(scores, others, strict=True))
    return _intervals({name: [_less(getattr(a, name), getattr(b, name)) for a, b in pairs] for name in COLUMNS})


def table(rows: Mapping[str, Figures], columns: Mapping[str, str]) -> str:
    """Markdown: a row for each label, as mean [95 % interval]."""
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in rows.items():
        cells = [figures.get(column) for column in columns]
        shown = ["-" if cell is None else f"{cell.mean:.2f} [{cell.low:.2f}, {cell.high:.2f}]" for cell in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def sheet(cases: Sequence[IdentityCase], made: dict[str, list[Pictures]], file: Path, shown: int = 4) -> None:
    """For each case its references, then one line of frames for each setting."""
    lines = []
    for place, case in enumerate(cases[:shown]):
        size = next(iter(made.values()))[place].shape[1]
        blank = np.full((size, size, 3), 255, np.uint8)
        left = [np.asarray(Image.fromarray(picture.image).resize((size, size))) for picture in case.references]
        for index, pictures in enumerate(made.values()):
            shown_left = left if index == 0 else [blank] * len(left)
            lines.append(np.concatenate([*shown_left, *pictures[place]], axis=1))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(lines)).save(file)


def write(output: Path, facts: Mapping[str, Any], scores: Scores) -> str:
    """Writes quality.json and quality.md; returns the tables."""
    figures = {_label(*key): summary(own) for key, own in scores.items()}
    named = {name: attributes(own) for (name, people), own in scores.items() if people == 1}
    paired = {
        f"{first} less {second}, {_who(people)}": differences(scores[first, people], scores[second, people])
        for people in dict.fromkeys(people for _, people in scores)
        for first, second in PAIRS
        if (first, people) in scores and (second, people) in scores
    }
    parts = {"figures": figures, "differences": paired, "attributes": named}
    document = dict(facts) | {part: _plain(rows) for part, rows in parts.items()}
    document["raw"] = {_label(*key): [asdict(one) for one in own] for key, own in scores.items()}
    output.mkdir(parents=True, exist_ok=True)
    (output / "quality.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    tables = [table(figures, COLUMNS)]
    if paired:
        tables.append(f"Differences on the same stories:\n\n{table(paired, COLUMNS)}")
    says = "The part of the frames of one character that show each attribute as the person has it:"
    tables.append(f"{says}\n\n{table(named, {name: name for name in ATTRIBUTES})}")
    text = "\n\n".join(tables)
    (output / "quality.md").write_text(_page(text, facts), encoding="utf-8")
    return text


def _page(text: str, facts: Mapping[str, Any]) -> str:
    absent = f" Not there were: {', '.join(facts['absent'])}." if facts["absent"] else ""
    said, left_out = ({_who(people): each for people, each in facts[name].items()} for name in ("saying", "left_out"))
    return f"""# References: does the person come back?

`{facts["command"]}`

{text}

Means over stories with bootstrap 95 % intervals. Cosines are of the judge, a face recogniser of its own build and
training that no adapter has seen. `renders` are the true pictures of the same stories and bound what can be measured;
`no reference` has the same prompts, `words` tells in them what people look like. Prompts say as little of people as
`--saying` asks: {_listed(said)}. With two characters another's reference is the other's of the same story. Attributes
and poses are read in stories of one character alone. A difference whose interval is all above 0 says that the first
setting has more of it. Left out are stories whose reference the package's detector finds no face in:
{_listed(left_out)}.{absent}

![Stories of one character: reference, then frames; a line for each setting](quality-1.png)

![Stories of two characters](quality-2.png)
"""


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} ({name})" for name, value in values.items())


def _label(setting: str, people: int) -> str:
    return f"{setting}, {_who(people)}"


def _who(people: int) -> str:
    return "one character" if people == 1 else f"{people} characters"


def _less(own: float | None, other: float | None) -> float | None:
    return None if own is None or other is None else own - other


def _intervals(columns: Mapping[str, Sequence[float | None]]) -> Figures:
    given = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: bootstrap(values) for name, values in given.items() if values}


def _plain(rows: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    return {label: {name: asdict(value) for name, value in row.items()} for label, row in rows.items()}
