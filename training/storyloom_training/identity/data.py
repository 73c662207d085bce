"""The encoders' training sets on disk: crops and labels in memory-mapped arrays, rendered once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from storyloom_training.identity.labels import ATTRIBUTES, faces_of
from storyloom_training.identity.renders import Crop, character_crops, face_crop
from storyloom_training.storydb.groups import Split, sample_cast

CHUNK = 64


@dataclass(frozen=True)
class CropSet:
    """Crops uint8 [n, size, size, 3] RGB, class numbers int16 [n, attributes], and who it is, int32 [n]."""

    folder: Path

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        return np.load(self.folder / "pixels.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def labels(self) -> NDArray[np.int16]:
        return np.load(self.folder / "labels.npy")  # type: ignore[no-any-return]

    @cached_property
    def who(self) -> NDArray[np.int32]:
        return np.load(self.folder / "who.npy")  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.who)


def face_set(folder: Path, split: Split, people: int, pictures: int, size: int, seed: int, workers: int) -> CropSet:
    """Aligned crops of `people` faces, `pictures` of each, rendered unless the folder holds them."""
    faces = faces_of(split, people, seed)
    jobs = [(f"{split.value}:{seed}:{index}", index) for index in range(people)]
    made = partial(_faces_of_person, faces=tuple(faces), pictures=pictures, size=size)
    described = {"faces": split.value, "people": people, "pictures": pictures, "size": size, "seed": seed}
    return _crop_set(folder, described, jobs, made, workers)


def character_set(folder: Path, split: Split, pictures: int, size: int, seed: int, workers: int) -> CropSet:
    """Whitened crops of the people in `pictures` pictures, rendered unless the folder holds them."""
    jobs = [(f"{split.value}:{seed}:{index}", index) for index in range(pictures)]
    described = {"characters": split.value, "pictures": pictures, "size": size, "seed": seed}
    return _crop_set(folder, described, jobs, partial(_characters_of_picture, split=split, size=size), workers)


Job = tuple[str, int]
Maker = Callable[[Job], list[Crop]]


def _faces_of_person(job: Job, faces: tuple[object, ...], pictures: int, size: int) -> list[Crop]:
    rng = Random(job[0])  # noqa: S311
    return [face_crop(faces[job[1]], rng, size) for _ in range(pictures)]  # type: ignore[arg-type]


def _characters_of_picture(job: Job, split: Split, size: int) -> list[Crop]:
    rng = Random(job[0])  # noqa: S311
    return list(character_crops(sample_cast(rng, split, rng.choice((1, 1, 2))), rng, size))


def _crop_set(folder: Path, described: Mapping[str, object], jobs: list[Job], made: Maker, workers: int) -> CropSet:
    record = folder / "data.json"
    described = {**described, "attributes": list(ATTRIBUTES), "format": 1}
    if record.exists():
        if json.loads(record.read_text()) != described:
            raise ValueError(f"{folder} holds another data set; choose another folder or remove it")
        return CropSet(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels, who = [], [], []
    with ProcessPoolExecutor(workers) as pool:
        for (_, index), crops in zip(
            jobs, track(pool.map(made, jobs, chunksize=CHUNK), "rendering", len(jobs)), strict=True
        ):
            pixels += [crop.pixels for crop in crops]
            labels += [crop.labels for crop in crops]
            who += [index] * len(crops)
    np.save(folder / "pixels.npy", np.stack(pixels))
    np.save(folder / "labels.npy", np.array(labels, np.int16))
    np.save(folder / "who.npy", np.array(who, np.int32))
    record.write_text(json.dumps(described))
    return CropSet(folder)
