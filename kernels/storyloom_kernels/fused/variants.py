"""What a kernel module tells of its launches, for compiling them ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storyloom_kernels.tuning import SMALL, Tiles, size_class, tiles

WIDTHS = (40, 64, 80, 160)
"""Head dimensions of SD 1.5 and SDXL."""


@dataclass(frozen=True)
class Variant:
    """A kernel with everything that its compilation depends on.

    `types` maps arguments to Triton's types, such as "*bf16"; arguments that it leaves out are int32. `constants` are
    the constexpr arguments. `aligned` arguments are multiples of 16, as the launcher finds them in real calls.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    warps: int
    stages: int


def each_tiles(entry: str, architecture: int, width: int) -> Iterator[tuple[str, Tiles]]:
    """The tiles of an entry of the tuning table, and the size class that they are for: "large" for both alike."""
    sizes = {tiles(entry, architecture, width, positions): size_class(positions) for positions in (SMALL, SMALL + 1)}
    for chosen, size in sizes.items():
        yield size, chosen
