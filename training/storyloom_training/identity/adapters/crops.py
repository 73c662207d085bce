"""Crops of the people in rendered groups, as encoders of references take them; cut once and kept on disk.

Files of a folder: `table.npy` int32 [groups, frames, people], the entry of each person of a frame or -1 where the face
is not seen; `faces.npy` (aligned) and `characters.npy` (on white), uint8 [entries, size, size, 3]; `crops.json`, what
made them (a folder made by other settings is refused).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from storyloom_model.identity.encoders.crops import RECOGNISER_SIZE, aligned_face, whitened_character
from storyloom_training.storydb.dataset import MAX_PEOPLE, StoryDB
from storyloom_training.storydb.picture import PersonTruth, render

Crops = NDArray[np.uint8]  # [n, size, size, 3] RGB
LEAST_FACE = 14
"""Pixels across; smaller faces are seldom found at inference either."""
_LEAST_LANDMARKS = 4


@dataclass(frozen=True)
class PeopleCrops:
    """Crops of the first groups of a data set."""

    folder: Path

    @cached_property
    def table(self) -> NDArray[np.int32]:
        table: NDArray[np.int32] = np.load(self.folder / "table.npy")
        return table

    @cached_property
    def faces(self) -> Crops:
        crops: Crops = np.load(self.folder / "faces.npy", mmap_mode="r")
        return crops

    @cached_property
    def characters(self) -> Crops:
        crops: Crops = np.load(self.folder / "characters.npy", mmap_mode="r")
        return crops


def people_crops(folder: Path, data: StoryDB, groups: int, workers: int = 1) -> PeopleCrops:
    """Loads the crops of the first `groups` groups, or makes them: about 15 ms a picture and core.

    Raises:
        ValueError: the folder holds crops of other data.
    """
    described = {
        "split": data.split.value, "groups": groups, "frames": data.frames, "size": data.size,
        "crop": RECOGNISER_SIZE, "format": 1,
    }  # fmt: skip
    record = folder / "crops.json"
    if record.exists():
        found = json.loads(record.read_text())
        if found != described:
            raise ValueError(f"{folder} holds other crops ({found}); choose another folder or remove it")
        return PeopleCrops(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        made = pool.map(partial(_crops_of_group, data), range(groups), chunksize=8)
        _save(folder, data.frames, track(made, "cutting out people", total=groups))
    record.write_text(json.dumps(described))
    return PeopleCrops(folder)


def face_seen(person: PersonTruth, size: int) -> bool:
    """Whether a face is large enough, in the picture, and not covered."""
    left, _, right, _ = person.face_box
    points = np.array(person.landmarks)
    if right - left < LEAST_FACE or points.min() < 0 or points.max() > size - 1:
        return False
    x, y = points.round().astype(int).clip(0, size - 1).T
    return int(person.mask[y, x].sum()) >= _LEAST_LANDMARKS


_GroupCrops = list[tuple[int, int, Crops, Crops]]  # frame, person, face, character


def _crops_of_group(data: StoryDB, index: int) -> _GroupCrops:
    """Landmarks are a little off, as a detector's are."""
    group, draw = data.group(index), np.random.default_rng(index)
    found: _GroupCrops = []
    for frame in range(data.frames):
        picture = render(group, frame, data.size)
        for place, person in enumerate(picture.people):
            if face_seen(person, data.size):
                landmarks = np.array(person.landmarks)
                landmarks += draw.normal(0, 0.04 * float(np.ptp(landmarks[:, 0])), landmarks.shape)
                face = aligned_face(picture.image, landmarks)
                character = whitened_character(picture.image, person.mask, RECOGNISER_SIZE)
                found.append((frame, place, face, character))
    return found


def _save(folder: Path, frames: int, made: Iterable[_GroupCrops]) -> None:
    tables: list[NDArray[np.int32]] = []
    faces: list[Crops] = []
    characters: list[Crops] = []
    for found in made:
        table = np.full((frames, MAX_PEOPLE), -1, np.int32)
        for frame, place, face, character in found:
            table[frame, place] = len(faces)
            faces.append(face)
            characters.append(character)
        tables.append(table)
    np.save(folder / "table.npy", np.stack(tables))
    np.save(folder / "faces.npy", np.stack(faces))
    np.save(folder / "characters.npy", np.stack(characters))
