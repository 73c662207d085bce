"""``storyloom-export inspect``: what is in an export, and what it takes to run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import sympy
from onnx import shape_inference

from storyloom_export.functions import DOMAIN
from storyloom_export.tensorrt.operators import unsupported


@dataclass(frozen=True)
class Inspection:
    """A component: its ops by "domain::name", parameters, bytes of weights, and operations of a run.

    ``flops`` counts two for every multiplication with an addition in convolutions and matrix products, at the sizes
    asked about; products inside our functions are counted by the formula of the attention that they are. ``expanded``
    are the ops of ours that a runtime without kernels for them runs as their bodies. ``falls_back`` are ops that
    TensorRT's parser knows in no form.
    """

    ops: Counter[str]
    parameters: int
    weight_bytes: int
    flops: int
    unknown_sizes: int
    expanded: Counter[str]
    falls_back: tuple[str, ...]


def inspect(file: Path, sizes: Mapping[str, int]) -> Inspection:
    """Looks into a component.

    Args:
        file: the ONNX file.
        sizes: of the free sizes, by their names in the graph's inputs, such as rows=12.
    """
    model = onnx.load(file, load_external_data=False)
    _fix_sizes(model, sizes)
    model = shape_inference.infer_shapes(model, data_prop=True)
    shapes = _shapes(model)
    ops = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    flops, unknown = 0, 0
    for node in model.graph.node:
        count = _flops(node, shapes)
        if count is None:
            unknown += 1
        else:
            flops += count
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 0]
    return Inspection(
        ops=ops,
        parameters=sum(_product(tensor.dims) for tensor in weights),
        weight_bytes=sum(_product(tensor.dims) * _width(tensor.data_type) for tensor in weights),
        flops=flops,
        unknown_sizes=unknown,
        expanded=Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN),
        falls_back=tuple(sorted(unsupported(model))),
    )


def _fix_sizes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Puts numbers in the place of named sizes and of what is computed from them, such as "2*height_by_2"."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                size = _evaluate(dimension.dim_param, sizes)
                if size is not None:
                    dimension.dim_value = size


@cache
def _parse(expression: str) -> sympy.Expr:
    return sympy.sympify(expression)


def _evaluate(expression: str, sizes: Mapping[str, int]) -> int | None:
    value = _parse(expression).subs(dict(sizes))
    return int(value) if value.is_Integer else None


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    known = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        dimensions = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dimensions):
            known[value.name] = [d.dim_value for d in dimensions]
    return known


def _flops(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int | None:
    """Of one node; 0 for what multiplies nothing, None where a size is not known."""
    counted = ("Conv", "MatMul", "Gemm", "CrossFrameAttention", "CrossAttentionWithMaps", "IdentityAttention")
    if node.op_type not in counted:
        return 0
    out = shapes.get(node.output[0])
    second = shapes.get(node.input[2 if node.op_type == "IdentityAttention" else 1])
    if out is None or second is None:
        return None
    match node.op_type:
        case "Conv":
            return 2 * _product(out) * _product(second[1:])
        case "MatMul":
            return 2 * _product(out) * second[-2]
        case "Gemm":
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            return 2 * _product(out) * second[1 if transposed else 0]
        case _:  # attention: scores and their sums; of K1 only a row's own keys, as the bank depends on the masks
            return 4 * _product(out) * second[1]


def _product(sizes: object) -> int:
    product = 1
    for size in sizes:  # type: ignore[attr-defined]
        product *= size
    return product


def _width(data_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
