"""The modules that launch Triton kernels, where these can run."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from storyloom_kernels.implementations import triton_obstacle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def launchers(name: str) -> ModuleType:
    """`storyloom_kernels.fused.<name>`; skips the test where there is neither a GPU nor Triton's interpreter."""
    if obstacle := triton_obstacle(torch.zeros(1, device=DEVICE)):
        pytest.skip(obstacle)
    return importlib.import_module(f"storyloom_kernels.fused.{name}")
