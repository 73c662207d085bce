"""Tables of what `run` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _time(record: dict[str, Any], name: str) -> float | None:
    return next((r.get("milliseconds") for r in record["results"] if r["name"] == name), None)


def _best(record: dict[str, Any], names: tuple[str, ...]) -> tuple[str, float] | None:
    times = [(name, time) for name in names if (time := _time(record, name)) is not None]
    return min(times, key=lambda pair: pair[1]) if times else None


def _cell(record: dict[str, Any], name: str) -> str:
    time = _time(record, name)
    return "-" if time is None else f"{time:.3f}"


def cross_frame_table(records: list[dict[str, Any]]) -> list[str]:
    columns = (
        "layer", "F", "pass", "Triton ms", "TFLOP/s", "SDPA ms", "Flex ms", "xFormers ms", "varlen ms",
        "against the best mask", "against varlen", "memory of SDPA's",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for record in records:
        own = next(r for r in record["results"] if r["name"] == "triton")
        sdpa = next(r for r in record["results"] if r["name"] == "sdpa")
        best, varlen = _best(record, ("sdpa", "flex", "xformers")), _time(record, "varlen")
        time = own.get("milliseconds")
        ratio = "-" if best is None or time is None else f"{best[1] / time:.2f}x ({best[0]})"
        against = "-" if varlen is None or time is None else f"{varlen / time:.2f}x"
        memory = "-"
        if sdpa.get("extra_bytes") and own.get("extra_bytes"):
            memory = f"{100 * own['extra_bytes'] / sdpa['extra_bytes']:.1f} %"
        layer = record["layer"]
        lines.append(
            f"| {layer['model']} N={layer['positions']} d={layer['width']} | {record['frames']} | {record['mode']} | "
            f"{_cell(record, 'triton')} | {own.get('tflops', 0):.1f} | "
            f"{' | '.join(_cell(record, name) for name in ('sdpa', 'flex', 'xformers', 'varlen'))} | "
            f"{ratio} | {against} | {memory} |"
        )
    return lines


def memory_bound_table(records: list[dict[str, Any]], baseline: str, rate: float) -> list[str]:
    lines = [f"| shape | Triton ms | {baseline} ms | faster by | times the memory floor |", "|---|---|---|---|---|"]
    for record in records:
        own, other = _time(record, "triton"), _time(record, baseline)
        shape = record.get("shape") or [record["rows"], *record["layer"].values()]
        ratio = "-" if own is None or other is None else f"{other / own:.2f}x"
        floor = "-" if own is None else f"{own / (1000 * record['bytes'] / rate):.2f}"
        lines.append(f"| {shape} | {_cell(record, 'triton')} | {_cell(record, baseline)} | {ratio} | {floor} |")
    return lines


def write_report(result: dict[str, Any], folder: Path) -> str:
    """Writes kernels.md. Returns its text."""
    by_op = {op: [r for r in result["records"] if r["op"] == op] for op in ("K1", "K2", "K4")}
    rate = result["copy_bytes_per_second"]
    lines = [
        f"# Kernels on {result['hardware']}", "",
        f"`{result['command']}`, {', '.join(f'{k} {v}' for k, v in result['versions'].items())}; a copy moves "
        f"{rate / 1e12:.2f} TB/s. Medians; every sample is in kernels.json.", "",
        "## K1, cross-frame attention, from the map to the output", "", *cross_frame_table(by_op["K1"]), "",
        "## K2, identity cross-attention with two streams and maps", "",
        *memory_bound_table(by_op["K2"], "sdpa", rate), "",
        "## K4, GroupNorm and SiLU", "", *memory_bound_table(by_op["K4"], "torch", rate), "",
    ]  # fmt: skip
    failures = [
        f"- {record['op']} {r['name']}: {r['error']}" for record in result["records"] for r in record["results"]
        if "error" in r
    ]  # fmt: skip
    if failures:
        lines += ["## What could not run", "", *dict.fromkeys(failures), ""]
    text = "\n".join(lines)
    (folder / "kernels.md").write_text(text)
    return text
