"""Tables and the plot of a load run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

SLOWDOWN_LIMIT = 3.0
NAMES = {"steps": "step scheduler", "requests": "request-level batching (b)", "one": "one story at a time (a)"}
COLOURS = {"steps": "tab:blue", "requests": "tab:orange", "one": "tab:grey"}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def summarise(part: Mapping[str, Any], scheduler: str, load: float) -> dict[str, float]:
    """The figures of one scheduler at one load. Stories that were refused or failed are never good."""
    stories = [s for s in part["stories"] if (s["scheduler"], s["load"]) == (scheduler, load)]
    done = [story for story in stories if story["latency"] is not None]
    good = sum(story["slowdown"] <= SLOWDOWN_LIMIT for story in done)
    found = {
        "stories": float(len(stories)),
        "failed": float(len(stories) - len(done)),
        "goodput": good / part["seconds"],
        "within": good / max(1, len(stories)),
    }
    for name in ("latency", "slowdown", "first_event", "first_step"):
        values = [story[name] for story in stories if story[name] is not None]
        found |= {f"{name}_p{percent}": quantile(values, percent / 100) for percent in (50, 95, 99)}
    return found


def loads_of(part: Mapping[str, Any]) -> list[float]:
    return sorted({story["load"] for story in part["stories"]})


def table(part: Mapping[str, Any]) -> list[str]:
    """A Markdown table: one row for each load and scheduler."""
    lines = [
        "| load | scheduler | stories | goodput /s | in time | latency s p50 / p95 / p99 | slowdown p50 / p95 / p99 | "
        "first event ms p50 / p99 | first step s p50 / p99 |",
        "|---" * 9 + "|",
    ]
    for load in loads_of(part):
        for scheduler, name in NAMES.items():
            found = summarise(part, scheduler, load)
            failed = f" ({found['failed']:.0f} failed)" if found["failed"] else ""
            lines.append(
                f"| {load:.1f} | {name} | {found['stories']:.0f}{failed} | {found['goodput']:.2f} | "
                f"{100 * found['within']:.0f} % | {_three(found, 'latency')} | {_three(found, 'slowdown')} | "
                f"{1000 * found['first_event_p50']:.0f} / {1000 * found['first_event_p99']:.0f} | "
                f"{found['first_step_p50']:.2f} / {found['first_step_p99']:.2f} |"
            )
    return lines


def _three(found: Mapping[str, float], name: str) -> str:
    return " / ".join(f"{found[f'{name}_p{percent}']:.1f}" for percent in (50, 95, 99))


def write_page(result: Mapping[str, Any], path: Path) -> None:
    lines = [
        "# A server under open-loop load", "",
        f"Poisson arrivals, the same for each scheduler; latency from the intended start. In time: within "
        f"{result['slowdown_limit']:g} times the time of such a story on an idle server. Batches have at most "
        f"{result['max_rows']} rows. Request-level batching gathers for 50 ms and batches equal step counts.", "",
        "![Goodput, slowdown and time to the first step](load.png)", "",
    ]  # fmt: skip
    for name, part in result["parts"].items():
        solo = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in part["solo_seconds"].items())
        hardware = part["hardware"]
        versions = ", ".join(f"{package} {version}" for package, version in hardware["versions"].items())
        lines += [
            f"## {name}", "",
            f"`{part['command']}`; {hardware['cores']} cores of {hardware['processor']}, load average "
            f"{hardware['load_average']:.1f} at the end; {versions}.", "",
            f"Steps: {part['about']}. Capacity {part['capacity']:.2f} stories/s; alone: {solo}. Stories came for "
            f"{part['seconds']:g} s at each load.", "",
            *table(part), "",
        ]  # fmt: skip
    path.write_text("\n".join(lines))


_PANELS: tuple[tuple[str, Callable[[Mapping[str, float]], float], str, bool], ...] = (
    ("goodput, stories/s", lambda found: found["goodput"], "-", False),
    ("slowdown, p50", lambda found: found["slowdown_p50"], "-", True),
    ("slowdown, p95", lambda found: found["slowdown_p95"], "-", True),
    ("first step, s, p50", lambda found: found["first_step_p50"], "-", True),
)
# Labels of a logarithmic axis: 1, 2, 5, 10 and so on, no powers.
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """A row of panels for each part."""
    parts = result["parts"]
    figure, grid = plt.subplots(
        len(parts), len(_PANELS), figsize=(15, 3.6 * len(parts)), squeeze=False, layout="constrained"
    )
    for row, (name, part) in zip(grid, parts.items(), strict=True):
        loads = loads_of(part)
        for panel, (title, value, style, logarithmic) in zip(row, _PANELS, strict=True):
            for scheduler, label in NAMES.items():
                values = [value(summarise(part, scheduler, load)) for load in loads]
                panel.plot(loads, values, style, marker="o", markersize=4, color=COLOURS[scheduler], label=label)
            panel.set_title(f"{name}: {title}", loc="left", fontsize=9)
            panel.set_xlabel("load, share of capacity")
            panel.grid(alpha=0.3)
            if logarithmic:
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter(_PLAIN)
                panel.yaxis.set_minor_formatter(_PLAIN)
            else:
                panel.set_ylim(bottom=0)
            if title.startswith("goodput"):
                offered = [load * part["capacity"] for load in loads]
                panel.plot(loads, offered, ":", color="black", linewidth=1, label="offered")
            if title.startswith("slowdown"):
                panel.axhline(SLOWDOWN_LIMIT, color="black", linestyle=":", linewidth=1)
    grid[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
