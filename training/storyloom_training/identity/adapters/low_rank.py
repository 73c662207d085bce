"""Low-rank changes of a frozen UNet's weights, in training (LoRA; Hu et al., 2021)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from storyloom_model.identity.adapter import LowRank


class LowRankChange(nn.Module):
    """Adds to what a linear layer gives; nothing at the start."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        linear.register_forward_hook(self._add)

    def _add(self, linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + nn.functional.linear(nn.functional.linear(inputs[0], self.down), self.up)


class LowRankChanges(nn.Module):
    """Changes of queries, keys, values and output of all self- and text attention of a UNet."""

    def __init__(self, unet: Any, rank: int) -> None:
        super().__init__()
        self._places: list[str] = []
        self.changes = nn.ModuleList()
        for name, module in unet.named_modules():
            if isinstance(module, Attention):
                parts = {"to_q": module.to_q, "to_k": module.to_k, "to_v": module.to_v, "to_out.0": module.to_out[0]}
                self._places += [f"{name}.{part}.weight" for part in parts]
                self.changes.extend(LowRankChange(linear, rank) for linear in parts.values())

    def by_parameter(self) -> dict[str, LowRank]:
        """By UNet parameter name."""
        changes = (change for change in self.changes if isinstance(change, LowRankChange))
        return {name: LowRank(change.down, change.up) for name, change in zip(self._places, changes, strict=True)}
