"""What identity streams cost on one CPU thread, used and unused: `python -m benchmarks.export.identities`.

The op as its body, at the shapes of the built-in model's cross-attention layers in a step of 12 rows. Processor time,
which other load weighs on less. Writes a JSON file with every number.
"""

from __future__ import annotations

import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from storyloom_export.functions import DOMAIN, OPSET, VERSION, function_protos

OUT = Path("benchmarks/results/export/identities-cpu.json")
ROWS, CHARACTERS, TOKENS = 12, 2, 8
"""Tokens are those of both characters of a row."""
LAYERS = ((256, 2, 3), (64, 4, 4))
"""Positions, heads of 64, and how many layers of this shape the model has."""
REPEATS = 40

Inputs = dict[str, NDArray[Any]]


def op_inputs(positions: int, heads: int) -> Inputs:
    """Two characters in every row."""
    draw = np.random.default_rng(0)

    def random(*shape: int) -> NDArray[Any]:
        return draw.standard_normal(shape).astype(np.float32)

    return {
        "attended": random(ROWS, positions, heads, 64),
        "q": random(ROWS, positions, heads, 64),
        "id_k": random(ROWS, TOKENS, heads, 64),
        "id_v": random(ROWS, TOKENS, heads, 64),
        "ends": np.tile(np.array([TOKENS // 2, TOKENS], np.int32), (ROWS, 1)),
        "scale": np.ones((ROWS, CHARACTERS), np.float32),
        "owner": np.tile(np.arange(CHARACTERS, dtype=np.int32), (ROWS, 1)),
        "maps": np.abs(random(ROWS, CHARACTERS, positions)),
        "present": np.ones((ROWS, CHARACTERS), np.bool_),
        "source_of_row": np.arange(ROWS, dtype=np.int32),
    }


def nobody(inputs: Inputs) -> Inputs:
    """The same rows without references, as the backend hands them in: room for one token that nothing is in."""
    streams = ("id_k", "id_v", "ends", "scale", "owner")
    return inputs | {name: np.zeros_like(inputs[name][:, :1]) for name in streams}


def open_op(inputs: Inputs) -> Any:
    """A session of the op alone."""
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in inputs.items()
    ]
    out = helper.make_tensor_value_info("out", values[0].type.tensor_type.elem_type, [None] * 4)
    node = helper.make_node("IdentityAttention", list(inputs), ["out"], domain=DOMAIN)
    model = helper.make_model(
        helper.make_graph([node], "op", values, [out]),
        functions=[function_protos()["IdentityAttention"]],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def milliseconds(session: Any, inputs: Inputs) -> float:
    """Of processor time, the median of the runs."""
    binding, times = session.io_binding(), []
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("out")
    for _ in range(REPEATS):
        begin = time.process_time()
        session.run_with_iobinding(binding)
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times)


def main() -> None:
    layers, sums = [], {"nobody has references": 0.0, "two characters have": 0.0}
    for positions, heads, count in LAYERS:
        inputs = op_inputs(positions, heads)
        session = open_op(inputs)
        cases = dict(zip(sums, (nobody(inputs), inputs), strict=True))
        found = {case: milliseconds(session, given) for case, given in cases.items()}
        layers.append({"positions": positions, "heads": heads, "layers": count, "milliseconds_each": found})
        for case, value in found.items():
            sums[case] += count * value
    result = {
        "onnxruntime": version("onnxruntime"), "rows": ROWS, "repeats": REPEATS, "layers": layers,
        "milliseconds_a_step": sums,
    }  # fmt: skip
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
