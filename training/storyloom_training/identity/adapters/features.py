"""What the encoders say of the people in rendered groups, computed once and kept as memory-mapped arrays.

Files of a folder: `table.npy` as of the crops; `face.npy` float16 [entries, 512], `face_states.npy` and
`character_states.npy` float16 [entries, tokens, width]; `portrait.npy`; `features.json`, the encoders that made them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from storyloom_training.identity.adapters.crops import Crops, PeopleCrops

ARRAYS = ("face", "face_states", "character_states")
PORTRAIT = "portrait"
"""Not of an encoder: uint8 [entries, side, side, 3], the head as it is in the picture."""
_BATCH = 64


class CropEncoder(Protocol):
    """Recogniser and image encoder of a model package, on crops that are cut already."""

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        ...

    def faces(self, crops: Crops) -> NDArray[np.float32]:
        """Aligned faces -> embeddings of length 1, [n, 512]."""
        ...

    def states(self, crops: Crops) -> NDArray[np.floating[Any]]:
        """Pictures -> penultimate states, [n, tokens, width]."""
        ...


@dataclass(frozen=True)
class PeopleFeatures:
    """Features of the first groups of a data set."""

    folder: Path

    @cached_property
    def table(self) -> Tensor:
        """int64 [groups, frames, people]; -1: the face is not seen."""
        return torch.from_numpy(np.load(self.folder / "table.npy")).long()

    @cached_property
    def face(self) -> NDArray[np.float16]:
        return self._load("face")

    @cached_property
    def face_states(self) -> NDArray[np.float16]:
        return self._load("face_states")

    @cached_property
    def character_states(self) -> NDArray[np.float16]:
        return self._load("character_states")

    @cached_property
    def portrait(self) -> NDArray[np.float16]:
        return self._load(PORTRAIT)

    @property
    def groups(self) -> int:
        return len(self.table)

    @property
    def encoders(self) -> str:
        """The fingerprint of what made the features."""
        return str(json.loads((self.folder / "features.json").read_text())["encoders"])

    def take(self, name: str, entries: Tensor) -> Tensor:
        """Float32 rows of one array by entry, [n, ...]."""
        array: NDArray[np.float16] = getattr(self, name)
        return torch.from_numpy(array[entries.numpy()].astype(np.float32))

    def _load(self, name: str) -> NDArray[np.float16]:
        array: NDArray[np.float16] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return array


def people_features(
    folder: Path, crops: PeopleCrops, encoder: CropEncoder, names: Sequence[str] = ARRAYS
) -> PeopleFeatures:
    """Loads the features of crops; those of `names` that the folder lacks are made.

    Raises:
        ValueError: the folder holds features of other crops or encoders.
    """
    described: dict[str, Any] = {"encoders": encoder.fingerprint, "entries": len(crops.faces), "format": 1}
    record = folder / "features.json"
    if record.exists():
        found = json.loads(record.read_text())
        if found != described:
            raise ValueError(f"{folder} holds other features ({found}); choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(crops.folder / "table.npy", folder / "table.npy")
    record.write_text(json.dumps(described))
    for name in names:
        file = folder / f"{name}.npy"
        if not file.exists():
            pictures = crops.characters if name == "character_states" else crops.faces
            _encode(file, pictures, encoder.faces if name == "face" else encoder.states)
    return PeopleFeatures(folder)


def _encode(file: Path, crops: Crops, encode: Callable[[Crops], NDArray[np.floating[Any]]]) -> None:
    starts = range(0, len(crops), _BATCH)
    batches = (crops[start : start + _BATCH] for start in track(starts, f"encoding {file.stem}"))
    np.save(file, np.concatenate([encode(batch).astype(np.float16) for batch in batches]))
