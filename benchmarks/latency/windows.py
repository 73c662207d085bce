"""A long story on the real server: what a frame costs, from the first to the last.

A story longer than the model's window is made in windows, each with finished frames as anchors. The time per frame must
not grow with the number of frames that are done.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.latency.overlap import story
from benchmarks.latency.served import served
from storyloom import FrameDone, StoryClient
from storyloom_model.package import read_manifest


def measure(model: Path, frames: int, steps: int) -> dict[str, Any]:
    """Seconds per frame of each window but the first, which has no anchors."""
    limits = read_manifest(model).limits
    with served(model) as address, StoryClient(address) as client:
        done = {
            event.frame_index: event.finished_seconds
            for event in client.stream(story(frames, steps, seed=1), timeout=3600)
            if isinstance(event, FrameDone)
        }
    size = limits.window_frames - limits.window_anchors
    starts = range(limits.window_frames, frames, size)
    ends = [max(done[frame] for frame in range(start, min(start + size, frames))) for start in starts]
    begins = [max(done[frame] for frame in range(limits.window_frames)), *ends[:-1]]
    counts = [min(size, frames - start) for start in starts]
    per_frame = [(end - begin) / count for begin, end, count in zip(begins, ends, counts, strict=True)]
    whole = [seconds for seconds, count in zip(per_frame, counts, strict=True) if count == size]
    tenth = max(1, len(whole) // 10)
    return {
        "window_frames": limits.window_frames,
        "window_anchors": limits.window_anchors,
        "total_seconds": max(done.values()),
        "seconds_per_frame": per_frame,
        "first_tenth": statistics.median(whole[:tenth]),
        "last_tenth": statistics.median(whole[-tenth:]),
        "slope_per_window": statistics.linear_regression(range(len(whole)), whole).slope / statistics.mean(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"))
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency/windows.json"))
    options = parser.parse_args()
    measured = measure(options.model, options.frames, options.steps)
    result = {
        "command": "python -m benchmarks.latency.windows " + " ".join(sys.argv[1:]),
        "frames": options.frames, "steps": options.steps, **measured,
        "hardware": {"machine": platform.machine(), "cpu_threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    first, last = measured["first_tenth"], measured["last_tenth"]
    print(f"{options.frames} frames in {measured['total_seconds']:.0f} s, {options.steps} steps each")
    print(f"seconds per frame: {first:.3f} in the first windows, {last:.3f} in the last ({last / first:.2f} times)")


if __name__ == "__main__":
    main()
