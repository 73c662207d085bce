"""Kernels against the best that other libraries do, in the same run: `make gpu` calls it after the tests.

Writes kernels.json with every sample, kernels.md with the tables and a plot for each op, and prints the aims with the
figures that they are held against.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.kernels import cross_frame, identity, norms, unet
from benchmarks.kernels.records import Case, Record
from benchmarks.kernels.report import write_report
from benchmarks.kernels.shapes import FRAMES, LAYERS, SMOKE_LAYERS
from benchmarks.kernels.timing import measure
from storyloom_kernels.implementations import triton_obstacle


def cases(device: torch.device, repeats: int, *, smoke: bool) -> Iterator[Case]:
    """What there is to measure, the most important first."""
    if smoke:
        yield from cross_frame.cases(SMOKE_LAYERS, (2,), device, repeats)
        yield from identity.cases(SMOKE_LAYERS, 2, device, repeats)
        yield from norms.cases(norms.SMOKE_SHAPES, device, repeats)
        yield from unet.cases(unet.SMOKE, 2, device, repeats)
        return
    yield from identity.cases(LAYERS, 8, device, repeats)
    yield from norms.cases(norms.SHAPES, device, repeats)
    yield from unet.cases(unet.SDXL, 8, device, repeats)
    yield from cross_frame.cases(LAYERS, FRAMES, device, repeats)


def bandwidth(device: torch.device, repeats: int, *, smoke: bool) -> float:
    """Bytes a second of a copy: the memory floor that K2 and K4 are held against."""
    x = torch.empty(2**12 if smoke else 2**30, dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    return 2 * x.numel() / measure(lambda: y.copy_(x), device, repeats).milliseconds * 1000


def _draw(result: Record, folder: Path) -> None:
    try:
        from benchmarks.kernels.plots import draw

        draw(result, folder)
    except ImportError:  # a machine with a GPU may have torch and little else
        print(f"no plots: matplotlib is not installed; python -m benchmarks.kernels.plots {folder} draws them later")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.kernels.run", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the results; default benchmarks/results/<device>")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begins no measurement after so long")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: whether it runs, not how fast")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if obstacle := triton_obstacle(torch.zeros(1, device=device)):
        sys.exit(f"the kernels cannot run here: {obstacle}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    out: Path = options.out or Path("benchmarks/results") / name.lower().replace(" ", "-")
    started = time.monotonic()
    rate = bandwidth(device, options.repeats, smoke=options.smoke)
    records, left_out = [], []
    for case in cases(device, options.repeats, smoke=options.smoke):
        label = f"{case.op} {case.shape} {case.mode}"
        if time.monotonic() - started > options.seconds:
            left_out.append(label)
            continue
        print(f"{time.monotonic() - started:6.1f} s  {label}", file=sys.stderr, flush=True)
        records.append(case.record())
    result = {
        "command": " ".join(["python -m benchmarks.kernels.run", *sys.argv[1:]]),
        "hardware": name,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": version("triton")},
        "copy_bytes_per_second": rate,
        "records": records,
        "left_out": left_out,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")
    print(write_report(result, out))
    _draw(result, out)


if __name__ == "__main__":
    main()
