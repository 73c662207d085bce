"""Tables of what `run` measured: the aims with their figures, then every time of every op."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.kernels.figures import FIGURES, measured
from benchmarks.kernels.records import Record

HEADINGS = {
    "K1": "K1, cross-frame attention", "K2": "K2, identity cross-attention with two streams and maps",
    "K4": "K4, GroupNorm and SiLU", "UNet": "A UNet step",
}  # fmt: skip


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(columns: tuple[str, ...], rows: Iterator[str]) -> list[str]:
    return [_row(*columns), "|---" * len(columns) + "|", *rows]


def aims_table(records: list[Record], rate: float) -> list[str]:
    """Every figure that has an aim, at every shape of the aim."""

    def rows() -> Iterator[str]:
        for figure in FIGURES:
            for record in records:
                if record["op"] == figure.op and figure.aimed(record):
                    value = figure.read(record, rate)
                    said = ("not measured", "-") if value is None else (figure.text(value), _verdict(figure.met(value)))
                    yield _row(figure.op, figure.name, record["shape"], record["pass"], said[0], figure.aim, said[1])

    return _table(("op", "figure", "shape", "pass", "measured", "aim", "met"), rows())


def _verdict(met: bool) -> str:
    return "yes" if met else "no"


def op_table(records: list[Record], rate: float) -> list[str]:
    """Milliseconds of every implementation, and the figures, of one op."""
    names = list(dict.fromkeys(result["name"] for record in records for result in record["results"]))
    figures = [figure for figure in FIGURES if figure.op == records[0]["op"]]

    def rows() -> Iterator[str]:
        for record in records:
            times = (measured(record, name) for name in names)
            values = ((figure, figure.read(record, rate)) for figure in figures)
            yield _row(
                record["shape"], record["pass"], *("-" if time is None else f"{time:.3f}" for time in times),
                *("-" if value is None else figure.text(value) for figure, value in values),
            )  # fmt: skip

    return _table(("shape", "pass", *(f"{name} ms" for name in names), *(figure.name for figure in figures)), rows())


def write_report(result: dict[str, Any], folder: Path) -> str:
    """Writes kernels.md. Returns the part with the aims."""
    records, rate = result["records"], result["copy_bytes_per_second"]
    head = [
        f"# Kernels on {result['hardware']}", "",
        f"`{result['command']}`, {', '.join(f'{k} {v}' for k, v in result['versions'].items())}; a copy moves "
        f"{rate / 1e12:.2f} TB/s. Medians; every sample is in kernels.json.", "",
        "## Aims", "", *aims_table(records, rate), "",
    ]  # fmt: skip
    failures = dict.fromkeys(
        f"- {record['op']} {one['name']}: {one['error']}" for record in records for one in record["results"]
        if "error" in one
    )  # fmt: skip
    if failures:
        head += ["## What could not run", "", *failures, ""]
    if result["left_out"]:
        head += ["## Not measured for want of time", "", *(f"- {case}" for case in result["left_out"]), ""]
    tables = []
    for op, heading in HEADINGS.items():
        if own := [record for record in records if record["op"] == op]:
            tables += [f"## {heading}", "", *op_table(own, rate), ""]
    (folder / "kernels.md").write_text("\n".join([*head, *tables]))
    return "\n".join(head)
