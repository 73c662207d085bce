"""A module onnxruntime whose GPU providers run on the CPU, and which writes down what it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from storyloom_export.memory import DeviceMemory

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"


class PretendedGpu(DeviceMemory):
    """A GPU whose memory is the CPU's."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(torch.device("cpu"))
        self.kind, self.index = "cuda", index
        self.made: list[Tensor] = []
        self.waits = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.made.append(super().empty(shape, dtype))
        return self.made[-1]

    def wait(self) -> None:
        self.waits += 1

    def stream(self) -> int:
        return 7


@dataclass
class Bound:
    """What a binding was told of a tensor."""

    name: str
    kind: str
    index: int
    pointer: int


@dataclass
class FakeOnnxRuntime:
    """``available``: providers that it says to have; ``starts``: those whose libraries load; ``devices`` of plugins."""

    available: tuple[str, ...] = (TENSORRT, CUDA, "CPUExecutionProvider")
    starts: tuple[str, ...] = (TENSORRT, CUDA, "CPUExecutionProvider")
    devices: list[Any] = field(default_factory=list)
    registered: list[tuple[str, str]] = field(default_factory=list)
    opened: list[tuple[str, Any]] = field(default_factory=list)
    """File, and the providers or the devices with options that a session was asked to have."""
    runs: list[list[Bound]] = field(default_factory=list)
    __version__: str = "1.31.0"

    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def get_ep_devices(self) -> list[Any]:
        return self.devices

    def register_execution_provider_library(self, name: str, library: str) -> None:
        self.registered.append((name, library))
        self.devices.append(SimpleNamespace(ep_name=name))

    def SessionOptions(self) -> FakeOptions:  # noqa: N802
        return FakeOptions()

    def InferenceSession(self, file: str, options: FakeOptions, providers: Any = None) -> FakeSession:  # noqa: N802
        return FakeSession(self, file, options, providers)


class FakeOptions(SimpleNamespace):
    """Session options."""

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.plugin = (devices, options)


class FakeSession:
    """Runs the file on the CPU, at the addresses that were bound."""

    def __init__(self, runtime: FakeOnnxRuntime, file: str, options: FakeOptions, providers: Any) -> None:
        self._runtime = runtime
        plugin = getattr(options, "plugin", None)
        runtime.opened.append((file, providers if plugin is None else plugin))
        asked = [plugin[0][0].ep_name] if plugin else [one if isinstance(one, str) else one[0] for one in providers]
        self._given = [name for name in asked if plugin or name in runtime.starts] or ["CPUExecutionProvider"]
        inner = onnxruntime.SessionOptions()
        inner.log_severity_level, inner.intra_op_num_threads = 3, options.intra_op_num_threads
        self._inner = onnxruntime.InferenceSession(file, inner, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return self._given

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self._inner.io_binding())

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        self._runtime.runs.append(binding.bound)
        self._inner.run_with_iobinding(binding.inner)


class FakeBinding:
    """Says "cpu" to the real binding where it was told "cuda"."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.bound: list[Bound] = []

    def bind_input(self, name: str, kind: str, index: int, element: int, shape: list[int], pointer: int) -> None:
        self.bound.append(Bound(name, kind, index, pointer))
        self.inner.bind_input(name, "cpu", 0, element, shape, pointer)

    def bind_output(self, name: str, kind: str, index: int, element: int, shape: list[int], pointer: int) -> None:
        self.bound.append(Bound(name, kind, index, pointer))
        self.inner.bind_output(name, "cpu", 0, element, shape, pointer)

    def synchronize_outputs(self) -> None:
        self.inner.synchronize_outputs()
