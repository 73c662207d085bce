"""bfloat16 only where the processor has it."""

from __future__ import annotations

import pytest
import torch

from storyloom_training import device


@pytest.mark.parametrize(("has", "used"), [(False, torch.float32), (True, torch.bfloat16)])
def test_a_cpu_without_bfloat16_computes_in_float32(
    has: bool, used: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_cpu_has_bfloat16", lambda: has)
    values = torch.ones(2, 2)
    with device.mixed_precision(torch.device("cpu")):
        assert (values @ values).dtype is used
