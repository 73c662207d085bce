"""The frozen tuning table: which tiles the kernels use, by architecture, head dimension and size of the layer.

Nothing is timed while serving: a result never depends on a machine's mood. What `tuning.json` does not list falls back
to the nearest older architecture. Its entries are chosen by what the compiler says of registers and shared memory;
`python -m storyloom_kernels.tune` makes them by time, and has not been run on a GPU yet. `made_by` in the file says
where they are from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch

SMALL = 1024
"""Layers of at most so many positions are of the size class "small"."""
OLDEST = 80


@dataclass(frozen=True)
class Tiles:
    """Queries and keys of a step, and how Triton runs it."""

    queries: int
    keys: int
    warps: int
    stages: int


@cache
def table() -> dict[str, list[int]]:
    """The table as it is on disk: "kernel/architecture/d/size" to queries, keys, warps, stages."""
    entries: dict[str, list[int]] = json.loads(files(__package__).joinpath("tuning.json").read_text())["tiles"]
    return entries


def size_class(positions: int) -> str:
    return "small" if positions <= SMALL else "large"


def width_class(width: int) -> int:
    """The widths that kernels are tuned for; others take the next wider one's tiles."""
    return next((known for known in (40, 64, 80, 160) if width <= known), 256)


@cache
def tiles(kernel: str, architecture: int, width: int, positions: int) -> Tiles:
    """The tiles of a launch.

    Args:
        kernel: such as "cross_frame_forward".
        architecture: 10 times the compute capability, such as 90.
        width: d.
        positions: N.

    Raises:
        LookupError: the table lists no such kernel.
    """
    known = sorted({int(key.split("/")[1]) for key in table() if key.startswith(f"{kernel}/")}, reverse=True)
    for older in (*(a for a in known if a <= architecture), *known[-1:]):
        entry = table().get(f"{kernel}/{older}/{width_class(width)}/{size_class(positions)}")
        if entry:
            return Tiles(*entry)
    raise LookupError(f"tuning.json lists no {kernel} for d={width}")


def architecture(device: torch.device) -> int:
    """10 times the compute capability of a CUDA device; for the interpreter, the oldest."""
    if device.type != "cuda":
        return OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
