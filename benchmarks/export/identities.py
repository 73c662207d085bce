"""What identity streams cost a UNet step in ONNX Runtime, used and unused: `python -m benchmarks.export.identities`.

One step of a package's UNet, in turns, by the graph without streams, by the graph with streams for rows that have none,
and by the same for rows that have them. Weights and inputs do not matter. Writes a JSON file with every number.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from storyloom_export import components
from storyloom_export.components import Exportable
from storyloom_export.graph import build_graph
from storyloom_export.memory import DeviceMemory
from storyloom_export.onnx_files import write_graph
from storyloom_export.session import Session
from storyloom_export.streams import PREFIX
from storyloom_kernels import GroupLayout
from storyloom_model.components import load_components
from storyloom_model.maps import ForegroundRule
from storyloom_model.package import ModelPackage

TOKENS, CHARACTERS = 8, 2
"""Of a row: two characters of four tokens."""


def step_inputs(part: Exportable, frames: int, size: int) -> dict[str, Tensor]:
    """A guided story's: two groups of as many frames, two characters; streams, if the graph has any, with tokens."""
    layout = GroupLayout((frames, frames))
    rows, text = layout.rows, part.inputs["text"]
    token_mask = torch.zeros(rows, CHARACTERS, text.shape[1], dtype=torch.bool)
    token_mask[:, 0, 2:8] = True
    token_mask[:, 1, 9:15] = True
    inputs = {
        "sample": torch.randn(rows, part.inputs["sample"].shape[1], size, size),
        "timestep": torch.full((rows,), 500.0),
        "text": torch.randn(rows, *text.shape[1:]),
        "token_mask": token_mask,
        "bounds": layout.bounds(text.device),
        "sources": torch.arange(frames, rows),
        "source_of_row": torch.arange(frames).repeat(2),
        "crosses_frames": torch.ones(rows, dtype=torch.bool),
        "previous_maps": torch.rand(frames, CHARACTERS, size, size),
    }
    for name, example in part.inputs.items():
        if name.startswith((f"{PREFIX}key", f"{PREFIX}value")):
            inputs[name] = torch.randn(rows, TOKENS, example.shape[2])
    if f"{PREFIX}ends" in part.inputs:
        inputs[f"{PREFIX}ends"] = torch.tensor([[TOKENS // 2, TOKENS]], dtype=torch.int32).repeat(rows, 1)
        inputs[f"{PREFIX}scale"] = torch.ones(rows, CHARACTERS)
        inputs[f"{PREFIX}owner"] = torch.arange(CHARACTERS).repeat(rows, 1)
    return inputs


def nobody(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows without references, as the backend hands them in: room for one token that nothing is in."""
    return {name: value[:, :1] * 0 if name.startswith(PREFIX) else value for name, value in inputs.items()}


def measure(package: ModelPackage, frames: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of a step, and median processor seconds, of the three cases."""
    cases: dict[str, tuple[Session, dict[str, Tensor]]] = {}
    config = json.loads((package.folder / "vae" / "config.json").read_text(encoding="utf-8"))
    size = package.manifest.defaults.width // 2 ** (len(config["block_out_channels"]) - 1)
    with tempfile.TemporaryDirectory() as folder:
        for name, identities in (("without", False), ("with", True)):
            part = components.unet(load_components(package).unet, ForegroundRule(), identities=identities)
            write_graph(build_graph(part), Path(folder) / f"{name}.onnx")
            session = Session(Path(folder) / f"{name}.onnx", DeviceMemory(torch.device("cpu")))
            inputs = step_inputs(part, frames, size)
            if identities:
                cases["graph with streams, nobody has references"] = session, nobody(inputs)
                cases["graph with streams, two characters have"] = session, inputs
            else:
                cases["graph without streams"] = session, inputs
        clocks: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for turn in range(repeats + 1):
            for name, (session, inputs) in cases.items():
                maps = (frames, CHARACTERS, size, size)
                outputs = {"prediction": (inputs["sample"].shape, torch.float32), "maps": (maps, torch.float32)}
                wall, cpu = time.perf_counter(), time.process_time()
                session.run(inputs, outputs)
                if turn:  # The first is a warm-up.
                    clocks[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "step_seconds": statistics.median(wall for wall, _ in readings),
            "step_cpu_seconds": statistics.median(cpu for _, cpu in readings),
            "least_cpu_seconds": min(cpu for _, cpu in readings),
        }
        for name, readings in clocks.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"))
    options.add_argument("--frames", type=int, default=6)
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--out", type=Path, default=Path("benchmarks/results/export/identities-cpu.json"))
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    found = {
        "machine": platform.machine(),
        "threads": given.threads,
        "rows": 2 * given.frames,
        "repeats": given.repeats,
        "onnxruntime": version("onnxruntime"),
        "cases": measure(ModelPackage.load(given.model), given.frames, given.repeats),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
