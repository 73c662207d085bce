"""What the scheduler's rules are worth: each is left out in turn, at 0.8 of a simulated device's capacity.

``python -m benchmarks.server.rules`` prints the table of docs/decisions/0008-scheduler.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

from benchmarks.server.simulate import capacity, measure
from benchmarks.server.workloads import SCENARIOS
from storyloom_server.scheduler import Scheduler, open_story, scheduler

LOAD = 0.8
STORIES = 500


def main() -> None:
    print("| device | scheduler | in time | p50 s | p99 s | p99 slowdown |\n|---|---|---|---|---|---|")
    for scenario in SCENARIOS[:2]:
        rules: dict[str, AbstractContextManager[Any]] = {
            "as it is": nullcontext(),
            "no ageing": patch.object(open_story, "_AGEING", 0.0),
            "batches always filled": patch.object(scheduler, "worthwhile", lambda batch, *_: len(batch)),
        }
        for name, change in rules.items():
            with change:
                found = measure(Scheduler, scenario, LOAD * capacity(scenario), STORIES, seed=1)
            in_time, slowdown = f"{100 * found['within_limit']:.0f} %", f"{found['slowdown_p99']:.1f}"
            seconds = f"{found['latency_p50']:.1f} | {found['latency_p99']:.0f}"
            print(f"| {scenario.name} | {name} | {in_time} | {seconds} | {slowdown} |")


if __name__ == "__main__":
    main()
