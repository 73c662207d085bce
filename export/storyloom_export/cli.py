"""The command ``storyloom-export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Exports model packages to ONNX and TensorRT.")
_console = Console(stderr=True)

PackageFolder = Annotated[Path, typer.Argument(help="Folder of a model package.")]
ExportFolder = Annotated[
    Path | None, typer.Argument(help="Folder of the export; PACKAGE/onnx, where the server looks, if not given.")
]


class BackendChoice(StrEnum):
    """What runs an export; the names of ``storyloom_export.backends``."""

    onnxruntime = "onnxruntime"
    onnxruntime_tensorrt = "onnxruntime-tensorrt"
    onnxruntime_tensorrt_rtx = "onnxruntime-tensorrt-rtx"
    tensorrt = "tensorrt"


class DtypeChoice(StrEnum):
    """The number type of weights and activations."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class QuantizeChoice(StrEnum):
    """The number type that the UNet's layers are quantised to."""

    none = "none"
    int8 = "int8"
    fp8 = "fp8"


@app.callback()
def main() -> None:
    """Exports model packages to ONNX and TensorRT."""


@app.command("onnx")
def onnx_command(
    package: PackageFolder,
    out: ExportFolder = None,
    dtype: Annotated[DtypeChoice, typer.Option(help="Number type of weights and activations.")] = DtypeChoice.float32,
    quantize: Annotated[
        QuantizeChoice, typer.Option(help="Quantise the UNet's layers, by NVIDIA's ModelOpt.")
    ] = QuantizeChoice.none,
) -> None:
    """Exports every component of PACKAGE to ONNX files in OUT."""
    from storyloom_export.artefact import ArtefactError, default_folder
    from storyloom_export.onnx_files import export_package
    from storyloom_model.package import ModelPackage, PackageError

    try:
        artefact = export_package(
            ModelPackage.load(package), out or default_folder(package), dtype.value, _console.print, quantize.value
        )
    except (PackageError, ArtefactError) as error:
        fail(error)
    size = sum(record.bytes for record in artefact.record.files.values())
    print(f"{len(artefact.record.components)} graphs, {size / 2**20:.1f} MiB in {artefact.folder}")


@app.command("verify")
def verify_command(
    package: PackageFolder,
    out: ExportFolder = None,
    backend: Annotated[BackendChoice, typer.Option(help="What runs the export.")] = BackendChoice.onnxruntime,
    device: Annotated[str, typer.Option(help="Where the export runs: cpu or cuda:N.")] = "cpu",
    steps: Annotated[int, typer.Option(min=1, help="Solver steps of the story that is made with both.")] = 4,
    reader: Annotated[
        str, typer.Option(help="Reads attributes, as module:function from pictures to dictionaries; none if empty.")
    ] = "",
) -> None:
    """Runs the same inputs through PACKAGE in torch float32 and its export; exits with 1 over the tolerance."""
    from storyloom_export.artefact import Artefact, ArtefactError, default_folder
    from storyloom_export.backends import BACKENDS
    from storyloom_export.verify import load_reader, verify
    from storyloom_model.package import ModelPackage, PackageError

    try:
        loaded = ModelPackage.load(package)
        artefact = Artefact.load(out or default_folder(package), loaded)
        report = verify(
            loaded,
            artefact,
            backend=BACKENDS[backend.value],
            device=device,
            steps=steps,
            reader=load_reader(reader) if reader else None,
        )
    except (PackageError, ArtefactError, ImportError, AttributeError) as error:
        fail(error)
    print(f"{'output':24} {'max error':>10} {'mean error':>10} {'largest value':>14}")
    for found in report.differences:
        print(f"{found.name:24} {found.largest:10.2e} {found.mean:10.2e} {found.scale:14.3f}")
    print(f"pictures of a story: PSNR {', '.join(f'{value:.1f}' for value in report.psnr)} dB")
    if report.agreement is not None:
        print(f"attributes read alike: {report.agreement:.1%}")
    for failure in report.failures:
        print(f"OVER THE TOLERANCE: {failure}")
    if report.failures:
        raise typer.Exit(1)


@app.command("inspect")
def inspect_command(
    package: PackageFolder,
    out: ExportFolder = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a UNet call.")] = 12,
    characters: Annotated[int, typer.Option(min=1, help="Characters of a story.")] = 2,
) -> None:
    """Prints ops, sizes and operations of every component of an export, and what falls back."""
    from storyloom_export.artefact import Artefact, ArtefactError, default_folder
    from storyloom_export.inspection import inspect
    from storyloom_export.sizes import package_sizes
    from storyloom_model.package import ModelPackage, PackageError

    try:
        loaded = ModelPackage.load(package)
        artefact = Artefact.load(out or default_folder(package), loaded)
    except (PackageError, ArtefactError) as error:
        fail(error)
    record = artefact.record
    print(f"{record.package}, {record.dtype}, quantised: {record.quantization}, opset {record.opset}, ", end="")
    print(f"package hash {record.package_hash[:12]}; {record.numerics}")
    sizes = package_sizes(loaded, record, rows, characters)
    for name in record.components:
        found = inspect(artefact.component(name), sizes)
        print(
            f"\n{name}: {found.parameters / 1e6:.2f} M parameters, {found.weight_bytes / 2**20:.1f} MiB, "
            f"{found.flops / 1e9:.2f} GFLOP a run"
            + (f" (without {found.unknown_sizes} ops of unknown size)" if found.unknown_sizes else "")
        )
        print("  ops: " + ", ".join(f"{count} {op}" for op, count in found.ops.most_common()))
        print("  run as their bodies in plain ONNX Runtime: " + (", ".join(found.expanded) or "none"))
        print("  unknown to TensorRT: " + (", ".join(found.falls_back) or "none"))


@app.command("tensorrt")
def tensorrt_command(
    package: PackageFolder,
    out: ExportFolder = None,
    device: Annotated[str, typer.Option(help="GPU to build for and on: cuda:N.")] = "cuda:0",
    buckets: Annotated[str, typer.Option(help="Row buckets, each a profile, separated by commas.")] = "2,4,8,16,32,48",
) -> None:
    """Builds TensorRT engines of an export, on the GPU that they will run on, into PACKAGE/tensorrt."""
    import torch

    from storyloom_export.artefact import Artefact, ArtefactError, default_folder
    from storyloom_export.tensorrt.builder import build_engine, components_to_build
    from storyloom_export.tensorrt.platform import Platform
    from storyloom_model.package import ModelPackage, PackageError

    try:
        platform = Platform.here(torch.device(device))
        loaded = ModelPackage.load(package)
        artefact = Artefact.load(out or default_folder(package), loaded)
        rows = read_buckets(buckets)
        for component in components_to_build(artefact):
            _console.print(f"building {component} for {platform.gpu.key}")
            file, built = build_engine(loaded, artefact, component, rows, platform)
            print(f"{file.stat().st_size / 2**20:.1f} MiB in {file}{'' if built else ', built before'}")
    except (PackageError, ArtefactError, ValueError) as error:
        fail(error)


def read_buckets(text: str) -> tuple[int, ...]:
    """Row buckets from their text.

    Raises:
        ValueError: it is no list of numbers from 1 to 63, the most that exports take.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 63 for part in parts):
        raise ValueError(f"buckets are numbers of rows from 1 to 63, separated by commas, such as 2,8,32; got {text}")
    return tuple(sorted({int(part) for part in parts}))


def fail(error: Exception) -> NoReturn:
    """Ends the command with an error that the user can act on."""
    _console.print(f"storyloom-export: {error}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
