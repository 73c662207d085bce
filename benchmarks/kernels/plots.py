"""Plots of what `run` measured: one picture for each op, a panel for each of its figures, the aim drawn as a line.

`python -m benchmarks.kernels.plots FOLDER` draws them from the kernels.json that lies there.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.kernels.figures import FIGURES, Figure
from benchmarks.kernels.records import PASSES, Record

COLOURS = dict(zip(PASSES, ("#3b6ea8", "#9dbbd9"), strict=True))
BAR = 0.38


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Writes kernels-<op>.png for each op that was measured. Returns the files."""
    files = []
    for op in dict.fromkeys(record["op"] for record in result["records"]):
        files.append(folder / f"kernels-{op.lower()}.png")
        picture(result, op).savefig(files[-1])
    return files


def picture(result: dict[str, Any], op: str) -> Any:
    """The plot of one op, a matplotlib figure."""
    from matplotlib.figure import Figure as Canvas

    records = [record for record in result["records"] if record["op"] == op]
    figures = [figure for figure in FIGURES if figure.op == op]
    shapes = list(dict.fromkeys(record["shape"] for record in records))
    canvas = Canvas(figsize=(2.6 + 3.6 * len(figures), 2.0 + 0.42 * len(shapes)), dpi=120, layout="constrained")
    panels = canvas.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for panel, figure in zip(panels, figures, strict=True):
        _panel(panel, figure, records, shapes, result["copy_bytes_per_second"])
    panels[0].set_yticks(range(len(shapes)), shapes)
    panels[0].set_ylim(len(shapes) - 0.4, -0.6)
    canvas.suptitle(f"{op} on {result['hardware']}")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PASSES) + 1)
    return canvas


def _panel(panel: Any, figure: Figure, records: list[Record], shapes: list[str], rate: float) -> None:
    largest = figure.target
    modes = [mode for mode in PASSES if any(record["pass"] == mode for record in records)]
    for number, mode in enumerate(modes):
        bars = list(_bars(figure, [record for record in records if record["pass"] == mode], shapes, rate))
        places = [row + (number - (len(modes) - 1) / 2) * BAR for row, _ in bars]
        drawn = panel.barh(places, [value for _, value in bars], BAR, color=COLOURS[mode], label=mode)
        # On white, in front of the line of the aim.
        panel.bar_label(
            drawn, [figure.text(value, unit=False) for _, value in bars], padding=3, fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=4,
        )  # fmt: skip
        largest = max(largest, *(value for _, value in bars), 0)
    rows = sorted({shapes.index(record["shape"]) for record in records if figure.aimed(record)})
    panel.vlines(
        [figure.target] * len(rows), [row - 0.5 for row in rows], [row + 0.5 for row in rows], color="#b03a2e",
        linestyle="--", linewidth=1.6, label="aim",
    )  # fmt: skip
    panel.set_xlim(0, 1.2 * largest)  # the numbers stand beside their bars
    panel.set_title(textwrap.fill(figure.name, 34), fontsize=9)
    panel.set_xlabel(f"{figure.unit.strip()} (aim: {figure.aim})", fontsize=8)


def _bars(figure: Figure, records: list[Record], shapes: list[str], rate: float) -> Iterator[tuple[int, float]]:
    for record in records:
        value = figure.read(record, rate)
        if value is not None:
            yield shapes.index(record["shape"]), value


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.kernels.plots", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for file in draw(json.loads((folder / "kernels.json").read_text()), folder):
        print(file)


if __name__ == "__main__":
    main()
