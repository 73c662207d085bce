"""``storyloom-export onnx``: a model package to a folder of ONNX files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from storyloom_export.artefact import (
    DTYPES,
    Artefact,
    ComponentRecord,
    Dtype,
    ExportRecord,
    Quantization,
    TensorRecord,
    describe_file,
    package_hash,
    write_record,
)
from storyloom_export.components import Exportable
from storyloom_export.functions import BFLOAT16_OPSET, OPSET
from storyloom_export.graph import build_graph
from storyloom_export.quantization import OPSET as QUANTIZED_OPSET
from storyloom_export.quantization import Ranges, calibrate, insert_pairs
from storyloom_export.sample import make, sample_job
from storyloom_export.story import levels_of
from storyloom_export.table import Row, load_modules, rows_of
from storyloom_model.adapters import load_adapter
from storyloom_model.components import load_components
from storyloom_model.denoiser import Denoiser
from storyloom_model.manifest import NO_ADAPTER
from storyloom_model.package import ModelPackage, PackageError

NUMERICS = (
    "Softmax, group normalisation, maps and masks in float32 at least; Otsu's threshold in whole numbers and float64; "
    "all else in the export's dtype"
)
_PACKAGES = ("storyloom", "torch", "onnx", "onnxscript", "diffusers", "transformers")
_CALIBRATION_STEPS = 8
_IN_FILE_BYTES = 256
"""Weights above this lie in the data file beside the graph, which has no 2 GB limit and which adapters share."""


def export_package(
    package: ModelPackage,
    folder: Path,
    dtype: Dtype = "float32",
    progress: Callable[[str], None] = lambda _: None,
    quantization: Quantization = "none",
) -> Artefact:
    """Exports every component of a package, and the UNet once more for each adapter.

    An adapter's file has its own weights only; all others are those of ``unet.data``. The folder is replaced as a
    whole when everything has been written and checked, so a run that fails leaves an older export as it was.

    Args:
        package: a checked package.
        folder: made if need be.
        dtype: of weights and activations.
        progress: told what is being done.
        quantization: of the UNet's layers, beside ``dtype``.

    Raises:
        ArtefactError: what quantises is not installed.
        PackageError: the package has a component that cannot be exported, or an adapter that is not for its UNet.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        partial = Path(scratch) / folder.name
        partial.mkdir()
        record = _write_all(package, partial, dtype, progress, quantization)
        write_record(partial, record)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    return Artefact(folder, record)


def _write_all(
    package: ModelPackage, folder: Path, dtype: Dtype, progress: Callable[[str], None], quantization: Quantization
) -> ExportRecord:
    ranges = {} if quantization == "none" else _ranges(package, quantization, progress)
    opset = quantization_opset(dtype, quantization)
    origin = package_hash(package)
    metadata = {
        "storyloom.package": package.manifest.name,
        "storyloom.package_hash": origin,
        "storyloom.dtype": dtype,
        "storyloom.quantization": quantization,
        "storyloom.numerics": NUMERICS,
        **{f"storyloom.version.{name}": version(name) for name in _PACKAGES},
    }
    modules = load_modules(package, getattr(torch, dtype))
    rows = list(rows_of(modules))
    for name in modules.keys() - {row.module for row, _ in rows}:
        progress(f"{name} is of a kind that is not exported; it runs in torch")
    multiple = 2 ** (levels_of(modules["unet"]) - 1)
    records = {}
    for row, module in rows:
        name = row.name
        progress(f"exporting {name}")
        model = build_graph(_part(row, module, package), opset=opset)
        if name == "unet" and ranges:
            insert_pairs(model, ranges, quantization)
        model.metadata_props.update(metadata | {"storyloom.component": name})
        write_graph(model, folder / f"{name}.onnx")
        records[name] = _describe(model, f"{name}.onnx")
        if name == "unet":
            for adapter in package.manifest.adapters:
                progress(f"exporting unet with adapter {adapter}")
                weights = load_adapter(package.adapter_file(adapter))
                write_adapted(folder / "unet.onnx", folder / f"unet.{adapter}.onnx", weights, adapter)
                records[f"unet.{adapter}"] = _describe(model, f"unet.{adapter}.onnx")
    return ExportRecord(
        package=package.manifest.name,
        package_hash=origin,
        dtype=dtype,
        quantization=quantization,
        opset=opset,
        latent_multiple=multiple,
        numerics=NUMERICS,
        versions={name: version(name) for name in _PACKAGES},
        components=records,
        files={file.name: describe_file(file) for file in sorted(folder.iterdir())},
    )


def quantization_opset(dtype: Dtype, quantization: Quantization) -> int:
    """The opset of an export."""
    if dtype == "bfloat16":
        return BFLOAT16_OPSET
    return OPSET if quantization == "none" else QUANTIZED_OPSET


def _ranges(package: ModelPackage, kind: Quantization, progress: Callable[[str], None]) -> dict[str, Ranges]:
    """Calibrates on a small story without adapter."""
    progress(f"calibrating the unet for {kind}")
    loaded = load_components(package)

    def run(unet: Any) -> None:
        make(Denoiser(package, replace(loaded, unet=unet)), sample_job(package, _CALIBRATION_STEPS, NO_ADAPTER))

    return calibrate(loaded.unet, kind, run)


def _part(row: Row, module: Any, package: ModelPackage) -> Exportable:
    try:
        return row.make(module, package)
    except ValueError as error:
        raise PackageError(f"the {row.name} cannot be exported: {error}") from error


def write_graph(model: ir.Model, file: Path) -> None:
    """Writes ``NAME.onnx`` and, tensor by tensor, ``NAME.data``; checks the result with ONNX's checker.

    Raises:
        onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    ir.save(model, file, external_data=f"{file.stem}.data", size_threshold_bytes=_IN_FILE_BYTES)
    onnx.checker.check_model(str(file), full_check=True)


def write_adapted(base: Path, file: Path, weights: Mapping[str, torch.Tensor], adapter: str) -> None:
    """Writes ``base`` with some weights replaced: a graph file, and a data file of these weights alone.

    Args:
        base: a graph that ``write_graph`` has written, in the folder of ``file``.
        file: the graph to write.
        weights: by parameter name.
        adapter: its name, for the error.

    Raises:
        PackageError: the graph has no weight of some name and shape.
    """
    model = onnx.load(base, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    with file.with_suffix(".data").open("wb") as data:
        for name, weight in weights.items():
            tensor = tensors.get(name)
            if tensor is None or list(tensor.dims) != list(weight.shape):
                found = "no such weight" if tensor is None else list(tensor.dims)
                raise PackageError(f"adapter {adapter} is not for this UNet: {name} is {list(weight.shape)}, {found}")
            replacement = ir.to_proto(ir.tensor(weight.to(_dtype(tensor)).contiguous(), name=name))
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                tensor.CopyFrom(replacement)
                continue
            del tensor.external_data[:]
            offset = data.tell()
            for key, value in (("location", file.with_suffix(".data").name), ("offset", offset)):
                tensor.external_data.add(key=key, value=str(value))
            tensor.external_data.add(key="length", value=str(data.write(replacement.raw_data)))
    model.metadata_props.add(key="storyloom.adapter", value=adapter)
    onnx.save(model, file)
    onnx.checker.check_model(str(file))


def _dtype(tensor: onnx.TensorProto) -> torch.dtype:
    return DTYPES[onnx.TensorProto.DataType.Name(tensor.data_type)]


def _describe(model: ir.Model, file: str) -> ComponentRecord:
    inputs, outputs = (
        tuple(
            TensorRecord(
                name=str(value.name), dtype=str(value.dtype), shape=tuple(_size(dim) for dim in value.shape or ())
            )
            for value in values
        )
        for values in (model.graph.inputs, model.graph.outputs)
    )
    return ComponentRecord(file=file, inputs=inputs, outputs=outputs)


def _size(dimension: Any) -> int | str:
    return dimension if isinstance(dimension, int) else str(dimension)
