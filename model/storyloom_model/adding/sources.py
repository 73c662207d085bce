"""Where a base model comes from: a folder, a file, or a hub."""

from __future__ import annotations

import re
from pathlib import Path

from storyloom_model.package import PackageError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("model_index.json", "*/*config*.json", "tokenizer*/*", "*/*.safetensors", "*/*.safetensors.index.json")
_VARIANTS = ("*.fp16.*", "*.non_ema.*", "*.ema_only.*", "safety_checker/*", "feature_extractor/*")


def find_source(source: str, revision: str | None = None) -> Path:
    """The folder or file of a source; one on a hub is fetched into the hub's cache, or found there.

    Args:
        source: a path, or an id such as "owner/name".
        revision: of a source on a hub: a branch, a tag or a commit.

    Raises:
        PackageError: there is no such source, or it cannot be fetched; the message says how to do without a network.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(source):
        raise PackageError(f"{source} does not exist; give a diffusers folder, a file, or the id of a model on a hub")
    return _fetched(source, revision)


def fetched_configuration(model: str) -> Path:
    """The folder of a model on a hub with everything but its weights.

    Raises:
        PackageError: see ``find_source``.
    """
    return _fetched(model, None, weights=False)


def _fetched(model: str, revision: str | None, *, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = [pattern for pattern in _FILES if weights or "safetensors" not in pattern]
    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=files, ignore_patterns=list(_VARIANTS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        wanted = " ".join(f"--include '{pattern}'" for pattern in files)
        raise PackageError(
            f"{model} cannot be fetched from the hub ({str(error).splitlines()[0]}). Where there is a network, run\n"
            f"  hf download {model} {wanted} --local-dir FOLDER\n"
            "and give FOLDER in its place."
        ) from error
    return Path(folder)
