"""Where training computes, and in what precision."""

from __future__ import annotations

from functools import cache

import torch


def choose_device(name: str | None = None) -> torch.device:
    """The named device; without a name the first GPU, or the CPU where there is none."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is safe and the processor computes in it; weights, losses and optimizer stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or _cpu_has_bfloat16())


@cache
def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself: where it does not, bfloat16 is slower than float32."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(there is True for name, there in capabilities.items() if "bf16" in name)
