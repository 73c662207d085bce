"""A package's face recogniser with gradients: the few operators of its ONNX file, in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OnnxRecogniser(nn.Module):
    """Faces [n, 3, 112, 112] RGB in [-1, 1] -> embeddings [n, 512], not yet of length 1; nothing in it trains.

    Raises:
        ValueError: the file has operators beyond those of this project's recogniser.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        graph = onnx.load(file).graph
        unknown = sorted({node.op_type for node in graph.node} - _OPERATORS.keys())
        if unknown:
            raise ValueError(f"{file} has operators that are not known here: {', '.join(unknown)}")
        arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        self._constants = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        self._nodes = [
            (
                _OPERATORS[node.op_type],
                list(node.input),
                node.output[0],
                {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute},
            )
            for node in graph.node
        ]
        self._ends = (graph.input[0].name, graph.output[0].name)

    def forward(self, faces: Tensor) -> Tensor:
        values: dict[str, Tensor] = {**self._constants, self._ends[0]: faces}
        for operator, inputs, output, attributes in self._nodes:
            values[output] = operator(attributes, *(values[name] for name in inputs))
        return values[self._ends[1]]


def _convolve(attributes: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padding = attributes["pads"][:2]
    return F.conv2d(x, weight, bias, attributes["strides"], padding, groups=attributes["group"])


def _pool(attributes: Mapping[str, Any], x: Tensor) -> Tensor:
    return F.avg_pool2d(x, attributes["kernel_shape"], attributes["strides"], attributes["pads"][:2])


def _multiply(attributes: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight if attributes["transB"] else weight.T, bias)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": _convolve,
    "AveragePool": _pool,
    "Gemm": _multiply,
    "Relu": lambda _, x: F.relu(x),
    "Add": lambda _, x, y: x + y,
    "Reshape": lambda _, x, shape: x.reshape(*shape.tolist()),
}
