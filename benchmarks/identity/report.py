"""Writes what a run found: raw numbers as JSON, a table as Markdown, contact sheets to look at."""

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
from benchmarks.quality.generate import Pictures
from benchmarks.quality.metrics import Interval, bootstrap

COLUMNS = {
    "to_reference": "face to reference",
    "to_other": "face to another's",
    "among": "faces among frames",
    "found": "faces found",
    "face_attributes": "face attributes",
    "clothes_attributes": "clothes attributes",
    "text": "scene and time",
    "background": "background distance",
    "poses": "distinct poses",
}


def summary(scores: Sequence[IdentityScore]) -> dict[str, Interval]:
    """Each figure over the stories that have it, with a bootstrap 95 % interval."""
    columns = {name: [getattr(one, name) for one in scores] for name in COLUMNS}
    return {
        name: bootstrap([float(value) for value in values if value is not None])
        for name, values in columns.items()
        if any(value is not None for value in values)
    }


def table(rows: dict[str, dict[str, Interval]]) -> str:
    """Markdown: a row for each setting and number of people, as mean [95 % interval]."""
    lines = ["| setting | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, figures in rows.items():
        cells = [figures.get(column) for column in COLUMNS]
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


def write(output: Path, facts: Mapping[str, Any], scores: Mapping[str, Sequence[IdentityScore]]) -> str:
    """Writes quality.json and quality.md; returns the table."""
    rows = {label: summary(own) for label, own in scores.items()}
    document = dict(facts) | {
        "figures": {label: {name: asdict(value) for name, value in row.items()} for label, row in rows.items()},
        "raw": {label: [asdict(one) for one in own] for label, own in scores.items()},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "quality.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = table(rows)
    (output / "quality.md").write_text(_page(text, facts), encoding="utf-8")
    return text


def _page(text: str, facts: Mapping[str, Any]) -> str:
    one, two = facts["left_out"]
    return f"""# References: does the person come back?

`{facts["command"]}`

{text}

Means over stories with bootstrap 95 % intervals. Cosines are of the judge, a face recogniser of its own build and
training that no adapter has seen. `renders` are the true pictures of the same stories and bound what can be measured;
`no reference` has the same prompts, `words` tells in them what people look like. Faces, clothes and poses are read in
stories of one character alone. Left out are stories whose reference the package's detector finds no face in: {one} of
one character, {two} of two.

![Stories of one character: reference, then frames; a line for each setting](quality-1.png)

![Stories of two characters](quality-2.png)
"""
