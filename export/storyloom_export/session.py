"""ONNX Runtime sessions on torch tensors: bound in place, on the CPU or on a GPU, with no copies in or out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from storyloom_export.artefact import ArtefactError

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


class Session:
    """A component in ONNX Runtime.

    Args:
        file: of the graph.
        device: "cpu" or "cuda:N".

    Raises:
        ArtefactError: ONNX Runtime cannot load the file, or has no provider for the device.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        self.device = device
        self._index = device.index or 0
        self._session = _open(file, providers(device))

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, tuple[Sequence[int], torch.dtype]]
    ) -> list[Tensor]:
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
        made = [torch.empty(tuple(shape), dtype=dtype, device=self.device) for shape, dtype in outputs.values()]
        for name, tensor in given.items():
            binding.bind_input(name, *self._place(tensor))
        for name, tensor in zip(outputs, made, strict=True):
            binding.bind_output(name, *self._place(tensor))
        if self.device.type == "cuda":
            # ONNX Runtime works on a stream of its own and must not start before torch has written the inputs.
            torch.cuda.current_stream(self.device).synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own.
            if _OUT_OF_MEMORY in str(error):
                raise MemoryError(f"ONNX Runtime ran out of memory: {error}") from error
            raise
        binding.synchronize_outputs()
        return made

    def _place(self, tensor: Tensor) -> tuple[str, int, int, list[int], int]:
        element = _ELEMENT_TYPES[tensor.dtype]
        return self.device.type, self._index, element, list(tensor.shape), tensor.data_ptr()


def providers(device: torch.device) -> list[Any]:
    """ONNX Runtime's providers for a device.

    Raises:
        ArtefactError: the installed ONNX Runtime has none.
    """
    available = onnxruntime.get_available_providers()
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type != "cuda" or "CUDAExecutionProvider" not in available:
        raise ArtefactError(
            f"the installed onnxruntime has no provider for {device}, only {', '.join(available)}; install "
            "onnxruntime-gpu in its place for a CUDA device, or use --device cpu"
        )
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]


def _open(file: Path, chosen: list[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As many threads as torch has: the server's --threads.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=chosen)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own.
        raise ArtefactError(f"ONNX Runtime cannot load {file}: {error}; export the package anew") from error
