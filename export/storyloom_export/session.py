"""ONNX Runtime sessions on torch tensors: bound in place, on the CPU or on a GPU, with no copies in or out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime
import torch
from torch import Tensor

from storyloom_export.artefact import ArtefactError
from storyloom_export.memory import DeviceMemory
from storyloom_export.providers import CPU, Choice, check_given, make_available

# ONNX's numbers of the element types (TensorProto.DataType), which ONNX Runtime's bindings take; numpy has no bfloat16.
_ELEMENT_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.bfloat16: 16,
}

_OUT_OF_MEMORY = "Failed to allocate memory"
"""In the messages of ONNX Runtime's arenas, on the CPU and on GPUs."""

Wanted = Mapping[str, tuple[Sequence[int], torch.dtype]]
"""Outputs by name: shape and dtype of each."""


class ComponentSession(Protocol):
    """A loaded component, whatever runs it."""

    @property
    def device(self) -> torch.device:
        """Where its inputs must lie and its outputs will."""

    def run(self, inputs: Mapping[str, Tensor], outputs: Wanted) -> list[Tensor]:
        """Runs the component; returns new tensors in the order of ``outputs``.

        Raises:
            MemoryError: memory ran out; fewer rows may pass.
        """


class OpenSession(Protocol):
    """Opens components."""

    def __call__(self, component: str, weights: Mapping[str, Tensor] | None = None) -> ComponentSession:
        """The session of a component; ``weights`` take the place of those of the same names."""


class TensorSession:
    """What sessions have in common: tensors in memory of one device, outputs made anew for every run."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory

    @property
    def device(self) -> torch.device:
        """Where inputs must lie and outputs will."""
        return self._memory.device

    def _new(self, outputs: Wanted) -> dict[str, Tensor]:
        """Memory for outputs, in their order."""
        return {name: self._memory.empty(shape, dtype) for name, (shape, dtype) in outputs.items()}


class Session(TensorSession):
    """A component in ONNX Runtime.

    Args:
        file: of the graph.
        memory: where inputs and outputs lie.
        choice: the execution provider and its options.
        runtime: the module onnxruntime, or what stands for it.
        weights: that take the place of those of the same names in the graph's data file.

    Raises:
        ArtefactError: ONNX Runtime cannot load the file, or has not the provider.
    """

    def __init__(
        self,
        file: Path,
        memory: DeviceMemory,
        choice: Choice = CPU,
        runtime: Any = onnxruntime,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(memory)
        # The session reads them where they are, for as long as it lives.
        self._weights = {name: _value(tensor, runtime) for name, tensor in (weights or {}).items()}
        self._session = _open(file, choice, runtime, self._weights)

    def run(self, inputs: Mapping[str, Tensor], outputs: Wanted) -> list[Tensor]:
        """Runs the graph.

        Args:
            inputs: by name, on the session's device.
            outputs: by name, shape and dtype of each.

        Returns:
            New tensors in the order of ``outputs``.

        Raises:
            MemoryError: memory ran out; fewer rows may pass.
        """
        binding = self._session.io_binding()
        given = {name: tensor.contiguous() for name, tensor in inputs.items()}
        made = self._new(outputs)
        for name, tensor in given.items():
            binding.bind_input(name, *self._place(tensor))
        for name, tensor in made.items():
            binding.bind_output(name, *self._place(tensor))
        # ONNX Runtime works on a stream of its own and must not start before torch has written the inputs.
        self._memory.wait()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own.
            if _OUT_OF_MEMORY in str(error):
                raise MemoryError(f"ONNX Runtime ran out of memory: {error}") from error
            raise
        binding.synchronize_outputs()
        return list(made.values())

    def _place(self, tensor: Tensor) -> tuple[str, int, int, list[int], int]:
        element = _ELEMENT_TYPES[tensor.dtype]
        return self._memory.kind, self._memory.index, element, list(tensor.shape), tensor.data_ptr()


def _value(weight: Tensor, runtime: Any) -> Any:
    """A weight as ONNX Runtime takes it, on the CPU; numpy has no bfloat16."""
    plain = weight.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        element = _ELEMENT_TYPES[plain.dtype]
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(plain.view(torch.uint16).numpy(), element)
    return runtime.OrtValue.ortvalue_from_numpy(plain.numpy())


def _open(file: Path, choice: Choice, runtime: Any, weights: Mapping[str, Any]) -> Any:
    devices = make_available(choice, runtime)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    # As many threads as torch has: the server's --threads.
    options.intra_op_num_threads = torch.get_num_threads()
    for name, value in choice.settings.items():
        options.add_session_config_entry(name, value)
    if weights:
        options.add_external_initializers(list(weights), list(weights.values()))
    if devices:
        options.add_provider_for_devices(devices, dict(choice.options))
    try:
        session = runtime.InferenceSession(str(file), options, **({} if devices else {"providers": choice.providers}))
    except Exception as error:  # ONNX Runtime's errors have no base class of their own.
        raise ArtefactError(
            f"ONNX Runtime {runtime.__version__} cannot load {file}: {str(error).strip()}; make the export anew, for "
            "this version, with: storyloom-export onnx PACKAGE"
        ) from error
    check_given(choice, session)
    return session
