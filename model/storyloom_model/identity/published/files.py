"""Weights out of files that others have published, without running what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from storyloom_model.package import PackageError

PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def read_weights(file: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file of nested dictionaries, by their names joined by dots.

    Args:
        file: of either kind, told by its suffix.
        allow_pickle: takes torch files, too. Only tensors and plain containers are unpickled, never other objects.

    Raises:
        PackageError: the file is missing, cut off, damaged, something else, or pickled without leave.
    """
    try:
        start = _start_of(file)
    except OSError as error:
        raise PackageError(f"{file} cannot be read: {error.strerror}") from error
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise PackageError(f"{file} is a web page, not weights: the download failed, often for want of a login")
    if start.startswith(b"version https://git-lfs"):
        raise PackageError(f"{file} is a Git LFS pointer, not weights; run `git lfs pull` where it came from")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix not in PICKLED:
        raise PackageError(f"{file} is neither .safetensors nor a torch file ({', '.join(PICKLED)})")
    if not allow_pickle:
        raise PackageError(
            f"{file} is a pickle, which can run code when it is read; take a .safetensors file if there is one, or "
            "give --allow-pickle, which reads nothing but tensors from it"
        )
    return _read_pickled(file)


def read_metadata(file: Path) -> dict[str, str]:
    """What a .safetensors file says of itself; nothing for other files."""
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, "pt") as content:
        return dict(content.metadata() or {})


def _start_of(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(64)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error
    return weights


def _read_pickled(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if "unsupported" in str(error).lower():
            raise PackageError(
                f"{file} holds more than tensors, which is not read; convert it to .safetensors where you trust it"
            ) from error
        raise _damaged(file, error) from error
    weights = _flat(content)
    if not weights:
        raise PackageError(f"{file} holds no tensors")
    return weights


def _damaged(file: Path, error: Exception) -> PackageError:
    what = (str(error) or type(error).__name__).splitlines()[0]
    return PackageError(f"{file} is cut off or damaged ({what}); download it again")


def _flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of nested dictionaries; numbers, texts and lists beside them are training records and left out."""
    found: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{key}"] = value
            else:
                found |= _flat(value, f"{prefix}{key}.")
    return found
