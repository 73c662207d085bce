"""Muon: gradient descent whose steps are orthogonal matrices (Jordan et al., 2024, "Muon" and "94 % on CIFAR-10").

Every direction of a weight matrix moves as far as every other, so that shapes are learnt beside colours from the start;
Adam spends most of a short training on colours alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix [m, n] with its singular values pushed towards 1, by three quintic Newton-Schulz iterations."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = x.T if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """For convolutions that a batch norm follows: their scale is free, so each weight is kept at norm sqrt(outputs).

    With `free_scale` off, for matrices whose scale matters: steps are as long as Adam's, and weights decay.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.6, *, free_scale: bool = True
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "free_scale": free_scale})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Takes one step; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.mul_(group["momentum"]).add_(weight.grad)
                update = orthogonal(weight.grad.add(momentum, alpha=group["momentum"]).flatten(1))
                if group["free_scale"]:
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
                else:
                    weight.mul_(1 - 0.05 * group["lr"])
                    update *= 0.2 * max(update.shape) ** 0.5
                weight.add_(update.view_as(weight), alpha=-group["lr"])


class Together(torch.optim.Optimizer):
    """Several optimizers as one, for a loop whose rate is 1 at most: it multiplies the rates they were made with."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__(groups, {})
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["rate_scale"] = group["lr"]
        self.param_groups = groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps each; `closure` is not used."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state_dict[str(index)])
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
