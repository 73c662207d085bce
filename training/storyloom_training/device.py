"""Where training computes, and in what precision."""

from __future__ import annotations

import torch


def choose_device(name: str | None = None) -> torch.device:
    """The named device; without a name the first GPU, or the CPU where there is none."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is safe; weights, losses and optimizer stay float32."""
    return torch.autocast(device.type, torch.bfloat16)
