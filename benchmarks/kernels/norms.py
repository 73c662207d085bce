"""K4 at the shapes of a VAE decoder and of a UNet, against PyTorch's GroupNorm and SiLU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels.records import FORWARD, PASSES, Case, Record, number_of_bytes, results, run_pass
from storyloom_kernels import group_norm_silu

GROUPS = 32
Shape = tuple[str, tuple[int, int, int, int]]
SHAPES: tuple[Shape, ...] = (
    ("VAE", (1, 128, 1024, 1024)),
    ("VAE", (1, 256, 512, 512)),
    ("VAE", (1, 512, 128, 128)),
    ("UNet", (8, 320, 128, 128)),
    ("UNet", (8, 1280, 32, 32)),
)
SMOKE_SHAPES: tuple[Shape, ...] = (("VAE", (1, 32, 8, 8)),)


def cases(shapes: tuple[Shape, ...], device: torch.device, repeats: int) -> Iterator[Case]:
    for model, shape in shapes:
        for mode in PASSES:
            label = f"{model} {'x'.join(map(str, shape))}"
            yield Case("K4", label, mode, {"model": model}, partial(_facts, shape, mode, device, repeats))


def _facts(shape: tuple[int, ...], mode: str, device: torch.device, repeats: int) -> Record:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, d_out = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1], device=device, dtype=dtype) for _ in range(2))

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm_silu(x, GROUPS, weight, bias, implementation="triton")

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, GROUPS, weight, bias))

    forwards = {"triton": fused, "torch": plain}
    calls = {name: run_pass(mode, forward, (x, weight, bias), (d_out,)) for name, forward in forwards.items()}
    # The input and the result; and for a backward the input, the gradient of the result and that of the input.
    moved = (2 if mode == FORWARD else 5) * number_of_bytes(x)
    return {"bytes": moved, "results": results(calls, device, repeats)}
