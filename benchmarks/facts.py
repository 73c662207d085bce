"""How the numbers of a run came about: what every result says beside them."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.processor import processor


def facts_of_run(module: str, device: str = "cpu") -> dict[str, Any]:
    """The command, the day and the machine.

    Args:
        module: what ``python -m`` was given.
        device: where the model ran.
    """
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device),
    }


def machine(device: str) -> dict[str, Any]:
    """The hardware and versions that the numbers were made with."""
    return {
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")}
