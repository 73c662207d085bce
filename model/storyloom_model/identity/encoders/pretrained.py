"""Models and processors of transformers, from folders of theirs and from nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from storyloom_model.identity.encoders.errors import EncodersError


def load_network(kind: Any, folder: Path, **options: Any) -> Any:
    """A model with all of its weights, from safetensors alone, to compute with.

    Args:
        kind: a class of transformers with ``from_pretrained``.
        folder: with its config.json and weights.
        options: for ``from_pretrained``.

    Raises:
        EncodersError: the folder is not usable, or weights are missing.
    """
    network, report = _loaded(kind, folder, use_safetensors=True, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise EncodersError(
            f"{folder} lacks {len(missing)} weights of {kind.__name__}, such as {missing[0]}; download it again"
        )
    return network.eval()


def load_processor(kind: Any, folder: Path) -> Any:
    """What makes a model's inputs.

    Raises:
        EncodersError: the folder has none that is usable.
    """
    return _loaded(kind, folder)


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EncodersError(f"{folder} can't be loaded as {kind.__name__}: {error}") from error
