"""Engines on disk: each beside a record that says what it was built of and for, which is read before the engine is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storyloom_export.artefact import ArtefactError, Dtype, FileRecord, check_file, describe_file
from storyloom_export.sizes import Profile

FORMAT = 1


class ProfileRecord(BaseModel):
    """A ``Profile`` as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: dict[str, int]
    best: dict[str, int]
    most: dict[str, int]

    @classmethod
    def of(cls, profile: Profile) -> ProfileRecord:
        """The record of a profile."""
        return cls(least=dict(profile.least), best=dict(profile.best), most=dict(profile.most))


class EngineKey(BaseModel):
    """All that an engine depends on; engines of other keys are other files. ``gpu`` is a ``Gpu.key``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str
    package: str
    package_hash: str
    dtype: Dtype
    gpu: str
    tensorrt: str
    profiles: tuple[ProfileRecord, ...]

    def file_name(self) -> str:
        """Such as "unet-0f3a91c2f1b3e0aa.engine"."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.component}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.engine"


class EngineRecord(BaseModel):
    """``NAME.json`` beside ``NAME.engine``, format 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    key: EngineKey
    file: FileRecord


def default_folder(package_folder: Path) -> Path:
    """Where the engines of a package are looked for when it is served."""
    return package_folder / "tensorrt"


def rebuild_hint(package_folder: Path) -> str:
    """The end of an error: how to build engines anew."""
    return f"build engines on this machine with: storyloom-export tensorrt {package_folder}"


def write_engine(folder: Path, key: EngineKey, content: bytes) -> Path:
    """Writes an engine and its record, the record last: an engine without one is not looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / key.file_name()
    record = file.with_suffix(".json")
    record.unlink(missing_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(file)
    record.write_text(EngineRecord(key=key, file=describe_file(file)).model_dump_json(indent=1) + "\n", "utf-8")
    return file


def find_engine(package_folder: Path, wanted: EngineKey) -> tuple[Path, EngineKey]:
    """The engine that was built of and for what is wanted, with whatever profiles; the newest of several.

    Args:
        package_folder: of the package.
        wanted: its profiles are not looked at.

    Returns:
        The engine's file, every byte of which is as it was built, and its own key.

    Raises:
        ArtefactError: there is none, or it is damaged; the message says what there is, and how to build it anew.
    """
    folder, hint = default_folder(package_folder), rebuild_hint(package_folder)
    records = sorted(
        folder.glob(f"{wanted.component}-*.json"), key=lambda file: (file.stat().st_mtime, file.name), reverse=True
    )  # fmt: skip
    if not records:
        raise ArtefactError(f"{folder} has no engine of {wanted.component}; {hint}")
    complaints = []
    for file in records:
        try:
            record = read_record(file)
            reason = _difference(record.key, wanted)
            if reason is None:
                check_file(file.with_suffix(".engine"), record.file, hint)
                return file.with_suffix(".engine"), record.key
        except ArtefactError as error:
            reason = str(error).removesuffix(f"; {hint}")
        complaints.append(f"{file.stem}: {reason}")
    raise ArtefactError(f"no engine of {wanted.component} in {folder} fits: {'; '.join(complaints)}; {hint}")


def is_built(folder: Path, key: EngineKey) -> bool:
    """Whether a folder has the engine of exactly this key, as it was built."""
    file = folder / key.file_name()
    try:
        record = read_record(file.with_suffix(".json"))
        check_file(file, record.file, "")
    except ArtefactError:
        return False
    return record.key == key


def read_record(file: Path) -> EngineRecord:
    """Reads the record of an engine.

    Raises:
        ArtefactError: it is damaged, or of another format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read as JSON ({error})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ArtefactError(f"{file} is of format {found}, and this version of Storyloom reads {FORMAT}")
    try:
        return EngineRecord.model_validate(content)
    except ValidationError as error:
        places = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise ArtefactError(f"{file} is damaged at {places}") from error


def _difference(found: EngineKey, wanted: EngineKey) -> str | None:
    """What an engine has against it; None if nothing."""
    if found.gpu != wanted.gpu:
        return f"was built for {found.gpu}, and this is {wanted.gpu}"
    if found.tensorrt != wanted.tensorrt:
        return f"was built by TensorRT {found.tensorrt}, and {wanted.tensorrt} is installed"
    if found.dtype != wanted.dtype:
        return f"is of a {found.dtype} export, and the export is {wanted.dtype}"
    if (found.package, found.package_hash) != (wanted.package, wanted.package_hash):
        return f"is of {found.package} with hash {found.package_hash[:12]}, not {wanted.package_hash[:12]}"
    return None
