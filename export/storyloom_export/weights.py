"""Weights that come one by one while a graph is written, so that a model need never be in memory as a whole."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

WeightSource = Callable[[str, Sequence[int], torch.dtype], Tensor]
"""Name, shape and dtype of a weight -> the weight."""


def stream_weights(model: ir.Model, prefix: str, source: WeightSource) -> None:
    """Makes every weight on the meta device one that is asked for when it is needed, and forgotten after that.

    Args:
        model: a graph of a module on the meta device.
        prefix: what the graph puts before the names of weights.
        source: gives the same weight for the same name each time.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        raw = getattr(tensor, "raw", None)
        if tensor is None or not (isinstance(raw, Tensor) and raw.is_meta):
            continue
        value.const_value = ir.LazyTensor(
            _asker(source, name.removeprefix(prefix), raw), dtype=tensor.dtype, shape=ir.Shape(raw.shape), name=name
        )  # fmt: skip


def random_weights(seed: int = 0) -> WeightSource:
    """Weights of about the size that training leaves: a normal distribution scaled by the number of inputs."""

    def weight(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if len(shape) < 2:
            return torch.full(tuple(shape), 1.0 if "norm" in name and name.endswith("weight") else 0.0, dtype=dtype)
        inputs = math.prod(shape[1:])
        draw = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        return torch.randn(tuple(shape), generator=draw, dtype=torch.float32).mul_(inputs**-0.5).to(dtype)

    return weight


def _asker(source: WeightSource, name: str, like: Tensor) -> Callable[[], ir.TensorProtocol]:
    return lambda: ir.tensor(source(name, like.shape, like.dtype), name=name)
