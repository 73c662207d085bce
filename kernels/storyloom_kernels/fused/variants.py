"""What a kernel module tells of its launches, for compiling them ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
