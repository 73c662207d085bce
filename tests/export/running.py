"""Runs one op of the domain ai.storyloom in plain ONNX Runtime, as its body; and inputs for a UNet."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from storyloom_export.artefact import ComponentRecord
from storyloom_export.functions import DOMAIN, OPSET, VERSION, function_protos
from storyloom_export.streams import no_streams
from storyloom_kernels import identity_cross_attention
from storyloom_model.identity.regions import shares, stream_regions

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


def identity_inputs(
    rows: int, positions: int, lengths: Sequence[Sequence[int]], characters: int, seed: int, width: int = 16
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of ``IdentityAttention`` for two heads, and what the definition makes of them.

    Args:
        rows: R.
        positions: N.
        lengths: of the streams of each row, in tokens; of as many rows as there are, or more.
        characters: K; not all are in every row, and the first source row's maps say nothing.
        seed: of the rest.
        width: of a head.
    """
    draw = torch.Generator().manual_seed(seed)
    streams, sources = max(map(len, lengths)), 2
    ends = torch.tensor([[*row, *[0] * (streams - len(row))] for row in lengths[:rows]], dtype=torch.int32).cumsum(1)
    shape = (rows, max(int(ends.max()), 1), 2, width)
    attended, q = (torch.randn(rows, positions, 2, width, generator=draw) for _ in range(2))
    given = {
        "attended": attended,
        "q": q,
        "id_k": torch.randn(shape, generator=draw),
        "id_v": torch.randn(shape, generator=draw),
        "ends": ends.int(),
        "scale": torch.rand(rows, streams, generator=draw),
        "owner": torch.randint(-1, characters, (rows, streams), generator=draw).int(),
        "maps": torch.rand(sources, characters, positions, generator=draw) * torch.tensor([0.0, 1.0])[:, None, None],
        "present": torch.rand(sources, characters, generator=draw) < 0.7,
        "source_of_row": torch.randint(sources, (rows,), generator=draw).int(),
    }
    region = stream_regions(
        shares(given["maps"], given["present"])[given["source_of_row"].long()], given["owner"].long()
    )
    text = torch.zeros(rows, 2, 1, width)
    q, id_k, id_v = (given[name].transpose(1, 2) for name in ("q", "id_k", "id_v"))
    added, _ = identity_cross_attention(q, text, text, id_k, id_v, given["ends"], given["scale"], region, None)
    return given, attended + added.transpose(1, 2)


def lone_rows(unet: ComponentRecord, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the tiny package's UNet: rows that see only themselves, and nobody in them."""
    draw, places = torch.Generator().manual_seed(seed), torch.arange(rows, dtype=torch.int32)
    inputs = {
        "sample": torch.randn(rows, 4, 8, 8, generator=draw),
        "timestep": torch.linspace(500, 20, rows),
        "text": torch.randn(rows, 77, 32, generator=draw),
        "token_mask": torch.zeros(rows, 1, 77, dtype=torch.bool),
        "bounds": torch.stack([places, places + 1], dim=1),
        "sources": torch.tensor([0]),
        "source_of_row": torch.zeros(rows, dtype=torch.int64),
        "crosses_frames": torch.zeros(rows, dtype=torch.bool),
        "previous_maps": torch.zeros(1, 1, 8, 8),
    }
    return inputs | no_streams(unet.inputs, rows, torch.device("cpu"))
