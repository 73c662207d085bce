"""The scheduler against one story at a time and against request-level batching, on simulated devices.

Loads are shares of the device's capacity: of the stories a second that it could finish if every story took its steps
in batches filled with its like. Stories come at random (Poisson) whether or not earlier ones are done, and their
latency counts from when they come. Goodput is the rate of stories that finish within three times the time that they
take on an idle device. Request-level batching runs with the best of several settings at each load, chosen on another
draw of the same traffic.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.server.baselines import OneAtATime, RequestBatching
from benchmarks.server.simulation import Outcome, SchedulerFactory, arrivals, simulate
from benchmarks.server.simulation_report import plot, write_report
from benchmarks.server.workloads import SCENARIOS, Scenario
from storyloom_server.scheduler import Limits, Scheduler

LOADS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
SLOWDOWN_LIMIT = 3.0
LIMITS = Limits(max_rows=32)

BATCHING_SETTINGS: tuple[dict[str, Any], ...] = tuple(
    {"max_delay": delay, "max_batch_rows": rows, "mix_steps": mix}
    for delay, rows, mix in itertools.product((0.0, 0.05, 0.5), (8, 32), (False, True))
)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise(outcomes: Sequence[Outcome], scenario: Scenario, rate: float) -> dict[str, Any]:
    latencies = [outcome.latency for outcome in outcomes]
    slowdowns = [outcome.latency / scenario.device.solo(outcome.spec.shape) for outcome in outcomes]
    first = [outcome.first_step for outcome in outcomes]
    share = sum(slowdown <= SLOWDOWN_LIMIT for slowdown in slowdowns) / len(outcomes)
    found: dict[str, Any] = {"goodput": share * rate, "within_limit": share}
    for name, values in (("latency", latencies), ("slowdown", slowdowns), ("first_step", first)):
        found |= {f"{name}_p{percent}": quantile(values, percent / 100) for percent in (50, 95, 99)}
    return found


def capacity(scenario: Scenario) -> float:
    """Stories a second that the device could finish at best."""
    draw = random.Random(0)  # noqa: S311 - a simulation
    shapes = [scenario.story(draw)[0] for _ in range(2000)]
    return len(shapes) / sum(scenario.device.shared(shape, LIMITS.max_rows) for shape in shapes)


def measure(factory: SchedulerFactory, scenario: Scenario, rate: float, count: int, seed: int) -> dict[str, Any]:
    stream = arrivals(scenario.story, rate, count, seed)
    return summarise(simulate(factory, LIMITS, scenario.device, stream), scenario, rate)


def best_batching(scenario: Scenario, rate: float, count: int, seed: int) -> dict[str, Any]:
    """The settings of request-level batching with the most goodput; the least p99 slowdown where they tie."""

    def merit(settings: dict[str, Any]) -> tuple[float, float]:
        found = measure(partial(RequestBatching, **settings), scenario, rate, count, seed)
        return (found["goodput"], -found["slowdown_p99"])

    return max(BATCHING_SETTINGS, key=merit)


def run(scenario: Scenario, count: int, loads: Sequence[float]) -> dict[str, Any]:
    most = capacity(scenario)
    points = []
    for load in loads:
        rate = load * most
        settings = best_batching(scenario, rate, max(count // 3, 1), seed=1000)
        point: dict[str, Any] = {
            "load": load,
            "stories_per_second": rate,
            "scheduler": measure(Scheduler, scenario, rate, count, seed=1),
            "one_at_a_time": measure(OneAtATime, scenario, rate, count, seed=1),
            "request_batching": measure(partial(RequestBatching, **settings), scenario, rate, count, seed=1),
            "request_batching_settings": settings,
        }
        points.append(point)
        print(f"{scenario.name}, load {load}: " + ", ".join(
            f"{name} {point[name]['within_limit']:.2f} in time, p99 slowdown {point[name]['slowdown_p99']:.1f}"
            for name in ("scheduler", "one_at_a_time", "request_batching")
        ), flush=True)  # fmt: skip
    return {
        "name": scenario.name, "traffic": scenario.traffic, "device": scenario.device.name,
        "device_source": scenario.device.source, "capacity": most, "points": points,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=1000, help="stories at each load")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/server"))
    options = parser.parse_args()
    result = {
        "command": f"python -m benchmarks.server.simulate --stories {options.stories}",
        "max_rows": LIMITS.max_rows, "slowdown_limit": SLOWDOWN_LIMIT, "stories": options.stories,
        "scenarios": [run(scenario, options.stories, LOADS) for scenario in SCENARIOS],
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "simulation.json").write_text(json.dumps(result, indent=1) + "\n")
    write_report(result, options.out / "simulation.md")
    plot(result, options.out / "simulation.png")


if __name__ == "__main__":
    main()
