"""A real server under open-loop load: step scheduling against one story at a time and request-level batching.

Two parts, each with a server for each scheduler, all alive at once. ``model``: the built-in model; the servers take
turns at the processor, load by load and round by round, so that noise of the machine hits all alike. ``paced``: a
denoiser that sleeps for as long as a GPU would compute, so that the three servers run at the same time and many more
stories fit into minutes. Every scheduler gets the same stories at the same moments.

Loads are shares of the capacity: the stories a second that the step scheduler makes of a heap of them. Goodput counts
the stories that are done within three times the time that they take on an idle server.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.server import machine
from benchmarks.server.load import Arrival, Kind, Outcome, mix, play, poisson, together
from benchmarks.server.paced import DEVICE
from benchmarks.server.report import SLOWDOWN_LIMIT, plot, table, write_page
from tests.server.serving import serving

OUT = Path("benchmarks/results/server")
MODEL = Path("weights/storyloom-mini")
LOADS = (0.3, 0.6, 0.8, 1.0, 1.2)
SCHEDULERS = {
    "steps": "storyloom_server.scheduler:Scheduler",
    "requests": "benchmarks.server.baselines:RequestBatching",
    "one": "benchmarks.server.baselines:OneAtATime",
}
MAX_ROWS = 32


@dataclass(frozen=True, slots=True)
class Part:
    """One of the two comparisons.

    Args:
        about: what takes the steps.
        backend: the class; None for the model itself.
        kinds: of the stories, all alike often.
        heap: stories by which the capacity is measured.
        at_once: the servers run at the same time.
    """

    name: str
    about: str
    backend: str | None
    kinds: tuple[Kind, ...]
    heap: int
    at_once: bool


PARTS = (
    Part(
        "paced",
        f"a denoiser that sleeps as long as a device would compute: {DEVICE.source}",
        "benchmarks.server.paced:PacedBackend",
        mix((2, 6), (8, 25)),
        heap=48,
        at_once=True,
    ),
    Part("model", f"{MODEL.name} at 128 x 128, one thread", None, mix((1, 3), (4, 10)), heap=12, at_once=False),
)


def measure(part: Part, seconds: float, rounds: int) -> dict[str, Any]:
    """Everything about one part; ``seconds`` is the time in which stories come at each load."""
    with ExitStack() as stack:
        addresses = {name: _start(stack, part, scheduler) for name, scheduler in SCHEDULERS.items()}
        solo = _solo(addresses["steps"], part)
        capacity = _capacity(addresses["steps"], part)
        print(
            f"{part.name}: {capacity:.2f} stories/s; alone, s: { ({k: round(v, 2) for k, v in solo.items()}) }",
            flush=True,
        )
        stories = []
        for round_ in range(rounds):
            for load in LOADS:
                schedule = poisson(part.kinds, load * capacity, seconds / rounds, seed=1000 * round_ + int(100 * load))
                for name, outcomes in _compare(addresses, schedule, turn=round_, at_once=part.at_once).items():
                    stories += [_record(name, load, round_, outcome, solo) for outcome in outcomes]
                print(f"{part.name}: round {round_ + 1}, load {load}: {len(schedule)} stories each", flush=True)
    return {
        "about": part.about,
        "command": "python -m benchmarks.server.run " + " ".join(sys.argv[1:]),
        "hardware": machine.facts(),
        "solo_seconds": solo,
        "capacity": capacity,
        "seconds": seconds,
        "stories": stories,
    }


def _start(stack: ExitStack, part: Part, scheduler: str) -> str:
    """Starts a server and returns its address."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    limits = ("--max-rows", str(MAX_ROWS), "--max-queue", "1000")
    server = stack.enter_context(
        serving(folder, MODEL, "--scheduler", scheduler, *limits, "--log-level", "warning", backend=part.backend)
    )
    return server.address


def _solo(address: str, part: Part, repeats: int = 3) -> dict[str, float]:
    """Seconds of a story of each kind on an idle server: the median of a few."""
    found = {}
    for kind in part.kinds:
        outcomes = [asyncio.run(play(address, [Arrival(0.0, kind, seed)]))[0] for seed in range(repeats)]
        found[kind.name] = statistics.median(_latency(outcome) for outcome in outcomes)
    return found


def _capacity(address: str, part: Part) -> float:
    began = time.monotonic()
    outcomes = asyncio.run(play(address, together(part.kinds, part.heap)))
    seconds = time.monotonic() - began
    return sum(_latency(outcome) > 0 for outcome in outcomes) / seconds


def _latency(outcome: Outcome) -> float:
    if outcome.latency is None:
        raise SystemExit(
            f"a story of {outcome.kind.name} ended with {outcome.error} on a server with nothing else to do"
        )
    return outcome.latency


def _compare(
    addresses: Mapping[str, str], schedule: Sequence[Arrival], *, turn: int, at_once: bool
) -> dict[str, list[Outcome]]:
    """Plays the schedule on every server: on all at once, or one after the other, a different one first each turn."""
    names = list(addresses)
    names = names[turn % len(names) :] + names[: turn % len(names)]

    async def all_at_once() -> list[list[Outcome]]:
        return await asyncio.gather(*(play(addresses[name], schedule) for name in names))

    if at_once:
        return dict(zip(names, asyncio.run(all_at_once()), strict=True))
    return {name: asyncio.run(play(addresses[name], schedule)) for name in names}


def _record(name: str, load: float, round_: int, outcome: Outcome, solo: Mapping[str, float]) -> dict[str, Any]:
    slowdown = None if outcome.latency is None else outcome.latency / solo[outcome.kind.name]
    return (
        {"scheduler": name, "load": load, "round": round_, "slowdown": slowdown}
        | dataclasses.asdict(outcome)
        | {"kind": outcome.kind.name}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="others stay in the result as they are"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="in which stories come, at each load")
    parser.add_argument("--rounds", type=int, default=2, help="into which these seconds are divided")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "load.json"
    parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
    parts |= {part.name: measure(part, options.seconds, options.rounds) for part in PARTS if part.name in options.parts}
    result = {"slowdown_limit": SLOWDOWN_LIMIT, "max_rows": MAX_ROWS, "parts": parts}
    path.write_text(json.dumps(result, indent=1) + "\n")
    write_page(result, options.out / "load.md")
    plot(result, options.out / "load.png")
    for name, part in parts.items():
        print(f"\n{name}\n" + "\n".join(table(part)))


if __name__ == "__main__":
    main()
