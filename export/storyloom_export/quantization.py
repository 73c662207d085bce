"""int8 and fp8: ranges of a UNet's layers by NVIDIA's ModelOpt, and Q/DQ nodes in the graph that say them.

Weights stay as they are in the file, under their names, so that adapters and refits find them; what quantises them is a
pair of nodes behind each. Runtimes with int8 or fp8 kernels fuse the pairs, others compute the same in floating point.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from storyloom_export.artefact import DTYPES, ArtefactError, Quantization

OPSET = 19
"""The first whose QuantizeLinear knows fp8 and takes half precision."""

_LARGEST = {"int8": 127.0, "fp8": 448.0}
_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
_CONFIGS = {"int8": "INT8_DEFAULT_CFG", "fp8": "FP8_DEFAULT_CFG"}
_KEPT = re.compile(r"^(conv_in|conv_out|time_embedding|add_embedding)\b|time_emb_proj|conv_shortcut")
"""Layers that lose most and cost least; they stay as they are, as in NVIDIA's recipes for diffusion models."""
_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Ranges:
    """Of a layer: the largest absolute value of its inputs, and of its weights, one value or one for each output."""

    inputs: float
    weights: Tensor


def calibrate(unet: Any, kind: Quantization, run: Callable[[Any], None]) -> dict[str, Ranges]:
    """Finds the ranges of every layer that ModelOpt's own configuration quantises, but for those that are best kept.

    Args:
        unet: is changed.
        kind: "int8" or "fp8".
        run: makes the given UNet see inputs like those that it will see.

    Returns:
        Ranges by the layer's name.

    Raises:
        ArtefactError: ModelOpt is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About versions of packages that are not used here.
        try:
            quantizer: Any = importlib.import_module("modelopt.torch.quantization")
        except ImportError as error:
            raise ArtefactError(
                f"quantising to {kind} needs NVIDIA's ModelOpt, which cannot be imported ({error}); install it with: "
                "pip install 'storyloom[quantize]'"
            ) from error
        quantised = quantizer.quantize(unet, getattr(quantizer, _CONFIGS[kind]), run)
    found = {}
    for name, layer in quantised.named_modules():
        ours, theirs = (getattr(layer, part, None) for part in ("input_quantizer", "weight_quantizer"))
        if ours is None or theirs is None or not (ours.is_enabled and theirs.is_enabled) or _KEPT.search(name):
            continue
        if ours.amax is not None and float(ours.amax.max()) > 0:
            found[name] = Ranges(float(ours.amax.max()), theirs.amax.detach().float().flatten().cpu())
    return found


def insert_pairs(model: ir.Model, ranges: Mapping[str, Ranges], kind: Quantization) -> int:
    """Puts a Q/DQ pair before the inputs and behind the weights of every layer that has ranges.

    Args:
        model: the graph of a UNet; changed in place.
        ranges: by the layer's name, whose weight is ``NAME.weight``.
        kind: "int8" or "fp8".

    Returns:
        Layers that were quantised.
    """
    graph = model.graph
    weights = {f"{name}.weight": found for name, found in ranges.items()}
    done = 0
    for name, value in list(graph.initializers.items()):
        if name not in weights:
            continue
        products = [product for product in map(_product, value.uses()) if product is not None]
        if not products:
            continue
        found = weights[name]
        for node in {id(product): product for product in products}.values():
            data = node.inputs[0]
            if data is not None:
                pair = _pair(model, data, torch.tensor(found.inputs), kind, f"{name.removesuffix('.weight')}.input")
                graph.insert_before(node, pair)
                node.replace_input_with(0, pair[1].outputs[0])
        uses = list(value.uses())
        pair = _pair(model, value, found.weights, kind, name)
        graph.insert_before(graph[0], pair)
        for use in uses:
            use.node.replace_input_with(use.idx, pair[1].outputs[0])
        done += 1
    return done


def _product(use: Any) -> ir.Node | None:
    """The product that a weight goes into, itself or transposed, as its second operand."""
    node, place = use.node, use.idx
    if node.op_type == "Transpose" and len(node.outputs[0].uses()) == 1:
        (use,) = node.outputs[0].uses()
        node, place = use.node, use.idx
    product: ir.Node = node
    return product if product.op_type in _PRODUCTS and place == 1 else None


def _pair(model: ir.Model, value: ir.Value, largest: Tensor, kind: Quantization, name: str) -> list[ir.Node]:
    """QuantizeLinear and DequantizeLinear of a value; its scale, of the value's type, and zero are initializers."""
    scales = (largest.clamp(min=1e-12) / _LARGEST[kind]).to(DTYPES[str(value.dtype)])
    shape = list(scales.shape) if scales.numel() > 1 else []
    scale = ir.Value(name=f"{name}.scale", const_value=ir.tensor(scales.reshape(shape), name=f"{name}.scale"))
    zeros = torch.zeros(shape, dtype=torch.int8 if kind == "int8" else torch.float8_e4m3fn)
    zero = ir.Value(name=f"{name}.zero", const_value=ir.tensor(zeros, name=f"{name}.zero"))
    for constant in (scale, zero):
        tensor = constant.const_value
        if tensor is not None:
            constant.type, constant.shape = ir.TensorType(tensor.dtype), ir.Shape(shape)
        model.graph.register_initializer(constant)
    attributes = {"axis": 0} if shape else {}
    quantise = ir.node("QuantizeLinear", [value, scale, zero], attributes, name=f"{name}.quantise")
    quantise.outputs[0].name = f"{name}.quantised"
    quantise.outputs[0].type, quantise.outputs[0].shape = ir.TensorType(_TYPES[kind]), value.shape
    restore = ir.node("DequantizeLinear", [quantise.outputs[0], scale, zero], attributes, name=f"{name}.restore")
    restore.outputs[0].name = f"{name}.restored"
    restore.outputs[0].type, restore.outputs[0].shape = value.type, value.shape
    return [quantise, restore]
