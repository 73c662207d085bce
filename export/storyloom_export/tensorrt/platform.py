"""Where engines are built and run: TensorRT's package, the GPU, and its memory. The seam to what needs a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from storyloom_export.artefact import ArtefactError
from storyloom_export.gpu import Gpu
from storyloom_export.memory import DeviceMemory
from storyloom_export.tensorrt.plugins import register

OLDEST = (10, 7)
"""The first TensorRT in which a plugin wins over a function of the same name."""


@dataclass(frozen=True)
class Platform:
    """TensorRT's Python package ``library``, the GPU that engines are for, its memory, and ``plugins.register``."""

    library: Any
    gpu: Gpu
    memory: DeviceMemory
    register: Callable[[int, int], list[str]] = register

    @property
    def version(self) -> str:
        """TensorRT's version, such as "11.4.0.106"; engines of another one are not read."""
        return str(self.library.__version__)

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """This machine's.

        Raises:
            ArtefactError: TensorRT is not installed or too old, or the device is no GPU.
        """
        library = load_library()
        if device.type != "cuda" or not torch.cuda.is_available():
            raise ArtefactError(
                f"TensorRT builds and runs engines on an NVIDIA GPU, and {device} is none that torch can use here; use "
                "--device cuda:0 on a machine with one, or --backend torch or onnxruntime"
            )
        memory = DeviceMemory(device)
        return cls(library, Gpu.of(memory), memory)


def load_library() -> Any:
    """TensorRT's Python package.

    Raises:
        ArtefactError: it is not installed, or too old.
    """
    try:
        library = importlib.import_module("tensorrt")
        version = str(library.__version__)
    except (ImportError, AttributeError) as error:
        raise ArtefactError(
            f"TensorRT cannot be imported ({error}); install it from NVIDIA's index, 10.7 or newer, on the machine "
            "with the GPU: pip install tensorrt-cu13 --extra-index-url https://pypi.nvidia.com"
        ) from error
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ArtefactError(f"TensorRT {version} is too old for our plugins; install 10.7 or newer")
    return library
