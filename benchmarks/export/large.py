"""Exports UNets of the shape of Stable Diffusion 1.5 and XL at full size: `python -m benchmarks.export.large`.

They are built on the meta device and their random weights are made one by one as the data file is written, so that the
largest weight, not the model, is what must fit into memory. Writes what it took, and that ONNX's checker passed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from storyloom_export import components
from storyloom_export.graph import build_graph
from storyloom_export.onnx_files import write_graph
from storyloom_export.shapes import SHAPES, build_unet
from storyloom_export.tensorrt.operators import unsupported
from storyloom_export.weights import random_weights
from storyloom_model.maps import ForegroundRule


def export(shape: str, dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    """Exports one UNet; figures of the export and of the files."""
    started = time.monotonic()
    unet = build_unet(shape, dtype=dtype, device="meta")
    parameters = sum(weight.numel() for weight in unet.parameters())
    model = build_graph(components.unet(unet, ForegroundRule()), random_weights())
    traced = time.monotonic()
    file = folder / f"{shape}.onnx"
    write_graph(model, file)  # runs the checker
    written = time.monotonic()
    graph = onnx.load(file, load_external_data=False)
    nodes = Counter(node.op_type for node in graph.graph.node)
    ours = {function.name for function in graph.functions}
    return {
        "shape": shape, "dtype": str(dtype), "parameters": parameters, "checker": "passed",
        "graph_bytes": file.stat().st_size, "data_bytes": file.with_suffix(".data").stat().st_size,
        "nodes": sum(nodes.values()), "our_nodes": {name: nodes[name] for name in sorted(ours)},
        "unknown_to_tensorrt": sorted(unsupported(graph)), "trace_seconds": round(traced - started, 1),
        "write_and_check_seconds": round(written - traced, 1),
        "peak_resident_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export/large.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(options.out.read_text())["exports"] if options.out.exists() else {}
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            results[shape] = export(shape, getattr(torch, options.dtype), Path(folder))
        print(json.dumps(results[shape]))
        record = {
            "command": "python -m benchmarks.export.large " + " ".join(sys.argv[1:]),
            "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "diffusers")},
            "exports": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
