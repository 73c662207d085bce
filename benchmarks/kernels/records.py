"""What is measured, and its record: one for each op, shape and pass, with a result for each implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.kernels.timing import measure

Record: TypeAlias = dict[str, Any]

FORWARD, TRAINING = "forward", "forward+backward"
PASSES = (FORWARD, TRAINING)


@dataclass(frozen=True)
class Case:
    """One op, shape and pass. `facts` measures it, when called: `results` and what else the figures need.

    `about` is what the aims ask of the shape.
    """

    op: str
    shape: str
    mode: str
    about: Record
    facts: Callable[[], Record]

    def record(self) -> Record:
        try:
            facts = self.facts()
        except Exception as error:  # noqa: BLE001 - one shape that cannot be set up must not cost the others
            facts = {"results": [{"name": "all", "error": _told(error)}]}
        return {"op": self.op, "shape": self.shape, "pass": self.mode, **self.about, **facts}


def results(calls: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int) -> list[Record]:
    """Milliseconds, samples and peak extra bytes of each call by name, or why it could not run."""
    return [{"name": name, **_attempt(call, device, repeats)} for name, call in calls.items()]


def _attempt(call: Callable[[], Any], device: torch.device, repeats: int) -> Record:
    try:
        return asdict(measure(call, device, repeats))
    except Exception as error:  # noqa: BLE001 - a baseline that cannot run is a finding, and says why
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return {"error": _told(error)}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def training(forward: Callable[..., Any], inputs: tuple[Tensor, ...], upstream: tuple[Tensor, ...]) -> Any:
    """A forward and the gradients of its inputs, given those of its results."""
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    out = forward(*leaves)
    return torch.autograd.grad(out, leaves, upstream if isinstance(out, tuple) else upstream[0])


def run_pass(
    mode: str, forward: Callable[..., Any], inputs: tuple[Tensor, ...], upstream: tuple[Tensor, ...]
) -> Callable[[], Any]:
    """What is timed: the forward, or the forward with its gradients."""
    return (lambda: forward(*inputs)) if mode == FORWARD else (lambda: training(forward, inputs, upstream))


def number_of_bytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
