"""Table and plot of what ``simulate`` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMES = {
    "scheduler": "step scheduler",
    "request_batching": "request-level batching",
    "one_at_a_time": "one story at a time",
}
COLOURS = {"scheduler": "tab:blue", "request_batching": "tab:orange", "one_at_a_time": "tab:grey"}


def goodput_at_equal(points: list[dict[str, Any]], rival: dict[str, Any], measure: str) -> float | None:
    """The scheduler's best goodput over the loads at which its ``measure`` is no worse than the rival's, if any."""
    fitting = [p["scheduler"]["goodput"] for p in points if p["scheduler"][measure] <= rival[measure]]
    return max(fitting, default=None)


def _ratio(value: float | None, base: float) -> str:
    if value is None:
        return "-"
    return f"{value / base:.1f}x" if base > 0 else "only it"


def _table(scenario: dict[str, Any]) -> list[str]:
    lines = [
        "| load | in time: scheduler | (b) | (a) | goodput over (b) | at (b)'s p99 slowdown | at (b)'s p99 seconds | "
        "slowdown p50 / p95 / p99 | (b) | seconds p50 / p99 | (b) | first step p50 / p99 s | (b) |",
        "|---" * 13 + "|",
    ]
    for point in scenario["points"]:
        ours, batching, one = (point[name] for name in ("scheduler", "request_batching", "one_at_a_time"))
        cells = [
            f"{point['load']:.1f}", *(f"{100 * p['within_limit']:.0f} %" for p in (ours, batching, one)),
            _ratio(ours["goodput"], batching["goodput"]),
            _ratio(goodput_at_equal(scenario["points"], batching, "slowdown_p99"), batching["goodput"]),
            _ratio(goodput_at_equal(scenario["points"], batching, "latency_p99"), batching["goodput"]),
            *(f"{p['slowdown_p50']:.1f} / {p['slowdown_p95']:.1f} / {p['slowdown_p99']:.1f}" for p in (ours, batching)),
            *(f"{p['latency_p50']:.1f} / {p['latency_p99']:.1f}" for p in (ours, batching)),
            *(f"{p['first_step_p50']:.2f} / {p['first_step_p99']:.1f}" for p in (ours, batching)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_report(result: dict[str, Any], path: Path) -> None:
    lines = [
        "# The scheduler on simulated devices", "",
        f"`{result['command']}`: {result['stories']} stories a point, Poisson arrivals, latency from the intended "
        f"start, no admission control (every story is taken, so above capacity the queue grows to the end of the run). "
        f"In time: within {result['slowdown_limit']:.0f} times the story's own time on an idle device (slowdown 3). "
        f"Batches have at most {result['max_rows']} rows.", "",
        "(a) is one story at a time; (b) is request-level batching with the best of twelve settings at each load "
        "(delay, rows, mixed step counts). Goodput over (b) is at the same load. *At (b)'s p99*: the most goodput that "
        "the scheduler reaches at any measured load where its p99 is no worse than (b)'s at this load; '-': nowhere. "
        "Time to the first event is that to the first finished step.", "",
    ]  # fmt: skip
    for scenario in result["scenarios"]:
        lines += [f"## {scenario['name']}", "", f"{scenario['traffic']}. Device: {scenario['device_source']}.", ""]
        lines += [*_table(scenario), ""]
    path.write_text("\n".join(lines))


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl  # Not at the top: the tests of the rest need no plotter.

    mpl.use("Agg")
    from matplotlib import pyplot

    scenarios = result["scenarios"]
    figure, axes = pyplot.subplots(3, len(scenarios), figsize=(3.6 * len(scenarios), 9), squeeze=False)
    for column, scenario in enumerate(scenarios):
        points, capacity = scenario["points"], scenario["capacity"]
        loads = [point["load"] for point in points]
        top, middle, bottom = (axes[row][column] for row in range(3))
        top.plot(loads, loads, color="black", linestyle=":", linewidth=1, label="all in time")
        for name, label in NAMES.items():
            style = {"color": COLOURS[name], "marker": "o", "markersize": 3, "label": label}
            goodput = [point[name]["goodput"] / capacity for point in points]
            top.plot(loads, goodput, **style)
            middle.plot(loads, [point[name]["slowdown_p99"] for point in points], **style)
            bottom.plot(loads, [point[name]["latency_p99"] for point in points], **style)
        top.set_title(scenario["name"], fontsize=10)
        middle.axhline(result["slowdown_limit"], color="black", linestyle=":", linewidth=1)
        middle.set_yscale("log")
        bottom.set_yscale("log")
        bottom.set_xlabel("load, share of capacity")
    for row, label in enumerate(("goodput, share of capacity", "p99 slowdown", "p99 latency, seconds")):
        axes[row][0].set_ylabel(label)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
