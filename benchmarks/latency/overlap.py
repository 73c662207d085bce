"""Two stories at once against one, on the real server, and the row scaling that explains the figure.

Prints, last, how long two stories submitted together take as a multiple of one alone. Below 2 the batch pays; where it
does not, the table of UNet time per row shows why on this device.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.latency.served import served
from storyloom import Character, Frame, Settings, Story, StoryClient
from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.prompts import compose

DESCRIPTION = "a young woman with long red hair and round glasses, wearing a green sweater"
SETTINGS = ("walking in a park", "reading a book in a garden", "waving at a lake", "sitting in a cafe")


def story(frames: int, steps: int, seed: int) -> Story:
    prompts = [f"a portrait of {{mia}} {SETTINGS[index % len(SETTINGS)]}" for index in range(frames)]
    return Story(
        characters={"mia": Character(description=DESCRIPTION)},
        frames=tuple(Frame(prompt=prompt) for prompt in prompts),
        settings=Settings(steps=steps, seed=seed),
    )


def _seconds(address: str, stories: list[Story]) -> float:
    """Wall-clock seconds until all of these stories, submitted together, are done."""

    def make(one: Story) -> None:
        with StoryClient(address) as client:
            client.generate(one, timeout=600)

    started = time.monotonic()
    with ThreadPoolExecutor(len(stories)) as pool:
        list(pool.map(make, stories))
    return time.monotonic() - started


def measure_server(model: Path, frames: int, steps: int, repeats: int) -> dict[str, Any]:
    """Times one story and two, in turns, on one server process."""
    one, two = [], []
    with served(model) as address:
        for repeat in range(repeats):
            one.append(_seconds(address, [story(frames, steps, repeat)]))
            two.append(_seconds(address, [story(frames, steps, repeat), story(frames, steps, 1000 + repeat)]))
    return {"one_seconds": one, "two_seconds": two, "ratio": statistics.median(two) / statistics.median(one)}


def measure_rows(model: Path, repeats: int) -> list[dict[str, float]]:
    """Times one guided batch step in one UNet call: 1 to 16 stories of one frame, two rows each."""
    denoiser = Denoiser.load(model, one_call=True)
    defaults = denoiser.manifest.defaults
    prompts = [compose("", f"a portrait of {{mia}} {text}", {"mia": DESCRIPTION}, []) for text in SETTINGS[:1]]
    found = []
    for stories in (1, 2, 4, 8, 16):
        times = []
        for _ in range(repeats):
            jobs = [
                StoryJob(
                    frames=tuple(FrameJob(prompt, index) for index, prompt in enumerate(prompts)),  # type: ignore[arg-type]
                    negative_prompt="", steps=20, guidance_scale=4.0, solver="ddim", width=defaults.width,
                    height=defaults.height, adapter=defaults.adapter,
                )
                for _ in range(stories)
            ]  # fmt: skip
            states = [denoiser.encode(job) for job in jobs]
            denoiser.step(states)  # the first step has no masks yet
            started = time.monotonic()
            denoiser.step(states)
            times.append(time.monotonic() - started)
        rows = stories * 2
        median = statistics.median(times)
        found.append({"rows": rows, "step_seconds": median, "milliseconds_per_row": 1000 * median / rows})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"))
    parser.add_argument("--frames", type=int, default=1, help="frames per story; few rows leave room for batching")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency/overlap.json"))
    options = parser.parse_args()
    rows = measure_rows(options.model, options.repeats)
    server = measure_server(options.model, options.frames, options.steps, options.repeats)
    result = {
        "command": "python -m benchmarks.latency.overlap " + " ".join(sys.argv[1:]),
        "frames": options.frames, "steps": options.steps, "server": server, "unet_rows": rows,
        "hardware": {"machine": platform.machine(), "cpu_threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(f"{row['rows']:3.0f} rows in one UNet call: {row['milliseconds_per_row']:6.1f} ms a row")
    print(f"two stories of {options.frames} frame(s) together take {server['ratio']:.2f} times as long as one alone")


if __name__ == "__main__":
    main()
