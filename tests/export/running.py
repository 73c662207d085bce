"""Runs one op of the domain ai.storyloom in plain ONNX Runtime, as its body."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from storyloom_export.functions import DOMAIN, OPSET, VERSION, function_protos

_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.int32: onnx.TensorProto.INT32,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
}


def op_model(
    name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, tuple[torch.dtype, int]], **attributes: Any
) -> Any:
    """A model of one node, which has passed the checker; ``outputs`` are dtype and rank by name."""
    node = helper.make_node(name, list(inputs), list(outputs), domain=DOMAIN, **attributes)
    given = [
        helper.make_tensor_value_info(key, _TYPES[value.dtype], [None] * value.ndim) for key, value in inputs.items()
    ]
    made = [helper.make_tensor_value_info(key, _TYPES[dtype], [None] * rank) for key, (dtype, rank) in outputs.items()]
    model = helper.make_model(
        helper.make_graph([node], name, given, made),
        functions=[function_protos()[name]],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def run_op(
    name: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, tuple[torch.dtype, int]], **attributes: Any
) -> list[Tensor]:
    """The outputs of one node."""
    model = op_model(name, inputs, outputs, **attributes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(list(outputs), {key: value.numpy() for key, value in inputs.items()})
    return [torch.from_numpy(np.asarray(values)) for values in found]
