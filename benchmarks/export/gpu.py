"""Every way to run a package on a GPU, on the same story in one run: `python -m benchmarks.export.gpu`.

torch as it is, compiled, with CUDA graphs; ONNX Runtime with each provider; TensorRT engines, which are built first.
What cannot be had on this machine is listed with the reason. Writes benchmarks/results/GPU/backends.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.export.backends import PLACES, in_process
from storyloom_export.artefact import Artefact, ArtefactError, default_folder
from storyloom_export.onnx_files import export_package
from storyloom_export.tensorrt.builder import build_engine, components_to_build
from storyloom_export.tensorrt.platform import Platform
from storyloom_model.execution import Dtype, ExecutionOptions
from storyloom_model.package import ModelPackage
from storyloom_server.engine.backend import load_backend

_PACKAGES = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt")


@dataclass(frozen=True)
class Variant:
    """A backend, and what differs from the options that all have."""

    backend: str
    changes: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "torch eager": Variant("torch"),
    "torch with CUDA graphs": Variant("torch", {"cuda_graphs": True}),
    "torch.compile": Variant("torch", {"compile": True}),
    "torch.compile with CUDA graphs": Variant("torch", {"compile": True, "cuda_graphs": True}),
    "onnxruntime": Variant("onnxruntime"),
    "onnxruntime-tensorrt": Variant("onnxruntime-tensorrt"),
    "onnxruntime-tensorrt-rtx": Variant("onnxruntime-tensorrt-rtx"),
    "tensorrt": Variant("tensorrt"),
    "tensorrt with CUDA graphs": Variant("tensorrt", {"cuda_graphs": True}),
}
"""The first is the reference."""


def measure(
    folder: Path, names: Sequence[str], device: str, options: ExecutionOptions, steps: int, repeats: int
) -> dict[str, Any]:
    """Figures by variant, or why it is not available.

    Args:
        folder: of a package with an export in ``options.dtype``.
        names: keys of ``VARIANTS``; the first is what pictures are compared with.
        device: where to run.
        options: of all variants.
        steps: of the solver.
        repeats: stories.
    """
    package = ModelPackage.load(folder)
    loaded: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name in names:
        print(f"loading {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            if VARIANTS[name].backend == "tensorrt":
                _build(package, device)
            loaded[name] = load_backend(
                VARIANTS[name].backend, folder, device, replace(options, **VARIANTS[name].changes)
            )  # fmt: skip
        except (ArtefactError, ValueError) as error:
            found[name] = {"not_available": str(error)}
        else:
            found[name] = {"load_seconds": round(time.monotonic() - started, 2)}
    for name, figures in in_process(loaded, package, steps, repeats).items():
        found[name] |= figures
        if VARIANTS[name].changes.get("compile") and not loaded[name].compiled:
            found[name] = {"not_available": "torch.compile failed and the model ran without; the log says why"}
    loaded.clear()
    gc.collect()
    return found


def _build(package: ModelPackage, device: str) -> None:
    """Engines for the story's rows: frames times guidance branches."""
    platform = Platform.here(torch.device(device))
    artefact = Artefact.load(default_folder(package.folder), package)
    for component in components_to_build(artefact):
        build_engine(package, artefact, component, (2 * len(PLACES),), platform)


def main(arguments: Sequence[str] | None = None) -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="benchmarks.export.gpu", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("weights/storyloom-mini"))
    parser.add_argument("--device", default="cuda:0" if on_gpu else "cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float16" if on_gpu else "float32"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default benchmarks/results/<device>/backends.json")
    options = parser.parse_args(arguments)
    dtype: Dtype = options.dtype
    kind = torch.device(options.device).type
    name = torch.cuda.get_device_name(options.device) if kind == "cuda" else kind
    out: Path = options.out or Path("benchmarks/results") / name.lower().replace(" ", "-") / "backends.json"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "package"
        shutil.copytree(options.model, folder, ignore=shutil.ignore_patterns("onnx", "tensorrt", "onnxruntime"))
        artefact = export_package(ModelPackage.load(folder), default_folder(folder), dtype)
        shared = ExecutionOptions(dtype=dtype, channels_last=kind == "cuda")
        figures = measure(folder, options.variants, options.device, shared, options.steps, options.repeats)
    result = {
        "command": "python -m benchmarks.export.gpu " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "device": name, "dtype": dtype, "frames": len(PLACES), "rows": 2 * len(PLACES), "steps": options.steps,
        "package_hash": artefact.record.package_hash, "variants": figures,
        "versions": dict(_versions()), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for variant, found in figures.items():
        print(f"{variant:31} {line(found)}")
    print(f"written to {out}")


def line(found: Mapping[str, Any]) -> str:
    """What is printed of a variant."""
    if "not_available" in found:
        return f"not available: {found['not_available']}"
    return (
        f"step {1000 * found['step_seconds']:7.2f} ms, decode {1000 * found['decode_seconds']:6.2f} ms a frame, "
        f"loading {found['load_seconds']:.1f} s, PSNR {min(found['psnr']):.1f} dB at least"
    )


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
