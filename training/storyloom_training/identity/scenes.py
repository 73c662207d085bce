"""Whole pictures with faces and masks: what the face detector and the segmenter learn from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from storyloom_model.identity.encoders.crops import Pixels
from storyloom_training.identity.renders import compress, draw_frame, picture_of
from storyloom_training.storydb.dataset import MAX_PEOPLE
from storyloom_training.storydb.groups import Split, sample_cast
from storyloom_training.storydb.picture import PersonTruth

CHUNK = 32
SEEN = 0.4
"""Fraction of a face box that has to be the person's own pixels for the face to count; a full oval covers 0.79."""


@dataclass(frozen=True)
class Scene:
    """A picture uint8 [s, s, 3] RGB, its faces [n, 14] (box: left, top, right, bottom; five landmarks: x, y) in pixels,
    whether each is to be found (bool [n]; the others are covered or cut), and the people's mask, bool [s, s]."""

    pixels: Pixels
    faces: NDArray[np.float32]
    clear: NDArray[np.bool_]
    mask: NDArray[np.bool_]


def draw_scene(split: Split, rng: Random, size: int) -> Scene:
    """A picture with nobody to three people, rendered at 96 to 256 pixels and resized to `size`."""
    cast = sample_cast(rng, split, rng.choice((1, 1, 1, 2, 2, 3)))
    framings = ("close-up", "portrait", "full body") if len(cast) == 1 else ("portrait", "full body")
    side = rng.choice((96, 128, 128, 160, 192, 256))
    picture = picture_of(cast, draw_frame(rng, len(cast), framings), side)
    pixels = compress(picture.image, rng)
    scale = size / side
    mask = np.any([person.mask for person in picture.people], axis=0)
    return Scene(
        np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)),
        np.array([_face(person) for person in picture.people], np.float32) * scale,
        np.array([_clear(person, side) for person in picture.people]),
        np.asarray(Image.fromarray(mask).convert("L").resize((size, size), Image.Resampling.BILINEAR)) > 127,
    )


def _face(person: PersonTruth) -> list[float]:
    return [*person.face_box, *(value for point in person.landmarks for value in point)]


def _clear(person: PersonTruth, side: int) -> bool:
    """Whether most of the face is inside the picture and not covered by other people or things."""
    left, top, right, bottom = (round(value) for value in person.face_box)
    inside = person.mask[max(0, top) : min(side, bottom), max(0, left) : min(side, right)]
    return bool(inside.sum() >= SEEN * (right - left) * (bottom - top))


@dataclass(frozen=True)
class SceneSet:
    """Scenes in arrays; `faces` float32 [n, MAX_PEOPLE, 14] and `clear` [n, MAX_PEOPLE]: NaN and False are nobody."""

    folder: Path

    @cached_property
    def pixels(self) -> Pixels:
        return np.load(self.folder / "pixels.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        return np.load(self.folder / "masks.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def faces(self) -> NDArray[np.float32]:
        return np.load(self.folder / "faces.npy")  # type: ignore[no-any-return]

    @cached_property
    def clear(self) -> NDArray[np.bool_]:
        return np.load(self.folder / "clear.npy")  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.faces)

    def scenes(self) -> Iterator[Scene]:
        for pixels, faces, clear, mask in zip(self.pixels, self.faces, self.clear, self.masks, strict=True):
            there = ~np.isnan(faces[:, 0])
            yield Scene(np.asarray(pixels), faces[there], clear[there], np.asarray(mask))


def scene_set(folder: Path, split: Split, pictures: int, size: int, seed: int, workers: int) -> SceneSet:
    """Renders `pictures` scenes unless the folder holds them."""
    record = folder / "data.json"
    described = {"scenes": split.value, "pictures": pictures, "size": size, "seed": seed, "format": 1}
    if record.exists():
        if json.loads(record.read_text()) != described:
            raise ValueError(f"{folder} holds another data set; choose another folder or remove it")
        return SceneSet(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (pictures, size, size, 3))
    masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.bool_, (pictures, size, size))
    faces = np.full((pictures, MAX_PEOPLE, 14), np.nan, np.float32)
    clear = np.zeros((pictures, MAX_PEOPLE), np.bool_)
    made = partial(_scene, split=split, seed=seed, size=size)
    with ProcessPoolExecutor(workers) as pool:
        for index, scene in enumerate(track(pool.map(made, range(pictures), chunksize=CHUNK), "rendering", pictures)):
            pixels[index], masks[index] = scene.pixels, scene.mask
            faces[index, : len(scene.faces)], clear[index, : len(scene.faces)] = scene.faces, scene.clear
    pixels.flush()
    masks.flush()
    np.save(folder / "faces.npy", faces)
    np.save(folder / "clear.npy", clear)
    record.write_text(json.dumps(described))
    return SceneSet(folder)


def _scene(index: int, split: Split, seed: int, size: int) -> Scene:
    return draw_scene(split, Random(f"scene:{split.value}:{seed}:{index}"), size)  # noqa: S311
