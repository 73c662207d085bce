"""An export on disk: a folder with ``export.json``, which says what is there, of which package, and how to check it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from storyloom_model.package import ModelPackage

RECORD_FILE = "export.json"
FORMAT = 1
_BLOCK_BYTES = 1 << 20
_HASHED_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2")

Dtype = Literal["float32", "float16", "bfloat16"]
Quantization = Literal["none", "int8", "fp8"]


DTYPES = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
"""torch's types by ONNX's names of them, as records have them."""


class ArtefactError(Exception):
    """An export cannot be used. The message names the file, says what is wrong, and how to make the export anew."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorRecord(_Part):
    """An input or output of a component: sizes are numbers, or the names of those that are free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class ComponentRecord(_Part):
    """One ONNX file."""

    file: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of its first output: the number type that it computes in."""
        return DTYPES[self.outputs[0].dtype]


class FileRecord(_Part):
    """What a file must be, to the byte."""

    bytes: int
    sha256: str


class ExportRecord(_Part):
    """``export.json``, format 1.

    ``latent_multiple``: the latents' height and width are multiples of this. ``quantization`` of the UNet.
    """

    format: Literal[1] = 1
    package: str
    package_hash: str
    dtype: Dtype
    quantization: Quantization = "none"
    opset: int
    latent_multiple: int
    numerics: str
    versions: dict[str, str]
    components: dict[str, ComponentRecord]
    files: dict[str, FileRecord]


def base_of(component: str) -> str:
    """The component whose graph one has with other weights: "unet" of "unet.amsa"; else the component itself."""
    return "unet" if component.startswith("unet.") else component


@dataclass(frozen=True)
class Artefact:
    """A checked export: its folder and its record."""

    folder: Path
    record: ExportRecord

    @classmethod
    def load(cls, folder: Path, package: ModelPackage) -> Self:
        """Reads an export and checks every byte of it.

        Raises:
            ArtefactError: it is missing, incomplete, damaged, of another format, or of another package.
        """
        record = read_record(folder, package)
        for name, expected in record.files.items():
            check_file(folder / name, expected, rebuild_hint(package, folder))
        if record.package_hash != (found := package_hash(package)):
            raise ArtefactError(
                f"{folder} was exported from other weights of {record.package} (hash {record.package_hash[:12]}, the "
                f"package in {package.folder} has {found[:12]}); {rebuild_hint(package, folder)}"
            )
        return cls(folder, record)

    def component(self, name: str) -> Path:
        """The ONNX file of a component.

        Raises:
            ArtefactError: the export has no such component.
        """
        if name not in self.record.components:
            known = ", ".join(self.record.components)
            raise ArtefactError(
                f"{self.folder} has no component {name}, only {known}; make the export anew with: "
                f"storyloom-export onnx PACKAGE {self.folder}"
            )
        return self.folder / self.record.components[name].file


def default_folder(package_folder: Path) -> Path:
    """Where the export of a package is looked for when it is served."""
    return package_folder / "onnx"


def rebuild_hint(package: ModelPackage, folder: Path) -> str:
    """The end of an error: how to make the export anew."""
    return f"make it anew with: storyloom-export onnx {package.folder} {folder}"


def read_record(folder: Path, package: ModelPackage) -> ExportRecord:
    """Reads ``export.json``; the files that it lists are not looked at.

    Raises:
        ArtefactError: it is missing, damaged, of another format, or of a package of another name.
    """
    file, hint = folder / RECORD_FILE, rebuild_hint(package, folder)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{file} does not exist, so there is no export to use; {hint}") from error
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read as JSON ({error}); {hint}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ArtefactError(f"{file} is of format {found}, and this version of Storyloom reads {FORMAT}; {hint}")
    try:
        record = ExportRecord.model_validate(content)
    except ValidationError as error:
        places = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise ArtefactError(f"{file} is damaged at {places}; {hint}") from error
    if record.package != package.manifest.name:
        raise ArtefactError(f"{folder} is an export of {record.package}, not of {package.manifest.name}; {hint}")
    return record


def write_record(folder: Path, record: ExportRecord) -> None:
    """Writes ``export.json``."""
    (folder / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def describe_file(file: Path) -> FileRecord:
    """Size and hash of a file."""
    return FileRecord(bytes=file.stat().st_size, sha256=_digest([file]))


def package_hash(package: ModelPackage) -> str:
    """SHA-256 over all of a package that an export is made of: configurations, weights, the image encoder, adapters and
    identity adapters with their methods, the mask rule.
    """
    manifest = package.manifest
    parts = [*_HASHED_FOLDERS, *([] if manifest.encoders is None else [manifest.encoders.image])]
    files = [file for part in parts for file in _files(package.folder / part)]
    files += [package.adapter_file(name) for name in manifest.adapters]
    files += [package.folder / one.file for one in manifest.identity_adapters.values()]
    digest = hashlib.sha256(manifest.attention.model_dump_json().encode())
    for name, one in sorted(manifest.identity_adapters.items()):
        digest.update(f"{name} {one.method}\n".encode())
    for file in sorted(files):
        digest.update(f"{file.relative_to(package.folder).as_posix()} {_digest([file])}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder."""
    return [path] if path.is_file() else [one for one in path.glob("*") if one.is_file()]


def check_file(file: Path, expected: FileRecord, hint: str) -> None:
    """Makes sure that a file is what its record says.

    Raises:
        ArtefactError: it is missing, truncated or corrupt; ``hint`` ends the message.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise ArtefactError(f"{file} is missing; {hint}") from error
    if size != expected.bytes:
        kind = "truncated" if size < expected.bytes else "not the file that was exported"
        raise ArtefactError(f"{file} is {kind}: {size} bytes, not {expected.bytes}; {hint}")
    if _digest([file]) != expected.sha256:
        raise ArtefactError(f"{file} is corrupt: its SHA-256 is not the recorded one; {hint}")


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
