"""Which GPU and which TensorRT there is: what engines and caches are kept apart by."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Self

import torch

from storyloom_export.memory import DeviceMemory

_LIBRARIES = ("libnvinfer.so.10", "libnvinfer.so.11")


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: its name and ten times its compute capability, such as 90."""

    name: str
    architecture: int

    @property
    def key(self) -> str:
        """Such as "NVIDIA H200 sm_90"."""
        return f"{self.name} sm_{self.architecture}"

    @classmethod
    def of(cls, memory: DeviceMemory) -> Self:
        """The GPU that a memory belongs to; for other memory none, "cpu sm_0"."""
        if memory.device.type != "cuda":
            return cls(memory.kind, 0)
        major, minor = torch.cuda.get_device_capability(memory.device)
        return cls(torch.cuda.get_device_name(memory.device), 10 * major + minor)


def tensorrt_version() -> str | None:
    """The version of TensorRT's library that the loader finds, such as "10.9.0"; None if it finds none."""
    for name in _LIBRARIES:
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None
