"""Which implementation of an op runs: named, or chosen by device."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Implementation: TypeAlias = Literal["auto", "triton", "reference", "sdpa", "flex", "xformers"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_MAP_POSITIONS = 16384
"""Positions of a map that K3's Triton kernel holds in one program."""
_MOST_ELEMENTS = 2**31  # the kernels count within a tensor in int32


_INSTALLED = {name for name in ("triton", "xformers") if importlib.util.find_spec(name) is not None}


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, one operation after the other (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes") and "triton" in _INSTALLED


def width_obstacle(head_width: int) -> str | None:
    """Why the Triton kernels do not take a head dimension; None if they do."""
    if head_width % 8 or not 16 <= head_width <= 256:
        return f"it takes head dimensions of 16 to 256 in steps of 8; got {head_width}"
    return None


def triton_obstacle(tensor: Tensor, head_width: int | None = None) -> str | None:
    """Why the Triton kernels do not take a tensor; None if they do."""
    if "triton" not in _INSTALLED:
        return "the package triton is not installed; install storyloom[gpu]"
    if not (tensor.is_cuda or interpreting()):
        return f"it needs a CUDA device, and the tensors are on {tensor.device}"
    if tensor.dtype not in _DTYPES:
        return f"it takes float32, float16 and bfloat16; got {tensor.dtype}"
    if head_width is not None and (obstacle := width_obstacle(head_width)):
        return obstacle
    if tensor.numel() >= _MOST_ELEMENTS:
        return f"it takes tensors of fewer than 2**31 elements; got {tensor.numel()}"
    return None


def choose(
    implementation: Implementation, known: tuple[str, ...], tensor: Tensor, head_width: int | None = None
) -> str:
    """The implementation that runs.

    "auto" is Triton for what is on a CUDA device and within the kernels' limits, and the reference for all else.

    Args:
        implementation: what the caller asked for.
        known: the implementations that the op has.
        tensor: the op's main argument.
        head_width: d, for attention.

    Raises:
        ValueError: the name is unknown, the op has no such implementation, or it cannot take this tensor.
    """
    if implementation not in get_args(Implementation) or implementation not in ("auto", *known):
        raise ValueError(f"no implementation {implementation!r} of this op; use auto, {', '.join(known)}")
    if implementation == "auto":
        return "triton" if tensor.is_cuda and triton_obstacle(tensor, head_width) is None else "reference"
    if implementation == "triton" and (obstacle := triton_obstacle(tensor, head_width)):
        raise ValueError(f"the Triton implementation cannot run: {obstacle}")
    if implementation == "xformers" and "xformers" not in _INSTALLED:
        raise ValueError("the implementation xformers cannot run: the package is not installed; install storyloom[gpu]")
    return implementation
