"""The rendered training set on disk: pictures and masks as memory-mapped arrays, groups made anew from their index.

Files of a data folder: `pictures.npy` uint8 [pictures, size, size, 3], `masks.npy` uint8 [pictures, 3, m, m]
(coverage of each person, 255 = all), `heads.npy` (the same of the heads alone), `data.json` (what made them; a folder
made by other settings is refused).
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from storyloom_training.storydb.groups import Group, Split, sample_group
from storyloom_training.storydb.picture import render

MAX_PEOPLE = 3


@dataclass(frozen=True)
class StoryDB:
    """A rendered set: `groups` groups of `frames` pictures each, in order."""

    folder: Path
    split: Split
    groups: int
    frames: int
    size: int
    mask_size: int

    def _description(self) -> dict[str, object]:
        return {
            "split": self.split.value, "groups": self.groups, "frames": self.frames, "size": self.size,
            "mask_size": self.mask_size, "format": 2,
        }  # fmt: skip

    def group(self, index: int) -> Group:
        return sample_group(self.split, index, frames=self.frames)

    @cached_property
    def pictures(self) -> npt.NDArray[np.uint8]:
        array: npt.NDArray[np.uint8] = np.load(self.folder / "pictures.npy", mmap_mode="r")
        return array

    @cached_property
    def masks(self) -> npt.NDArray[np.uint8]:
        array: npt.NDArray[np.uint8] = np.load(self.folder / "masks.npy", mmap_mode="r")
        return array

    @cached_property
    def heads(self) -> npt.NDArray[np.uint8]:
        array: npt.NDArray[np.uint8] = np.load(self.folder / "heads.npy", mmap_mode="r")
        return array

    def prepare(self) -> None:
        """Renders the set unless the folder holds it already; takes 3 to 4 ms a picture at 128 pixels and one core."""
        record = self.folder / "data.json"
        if record.exists():
            found = json.loads(record.read_text())
            if found != self._description():
                raise ValueError(f"{self.folder} holds another data set ({found}); choose another folder or remove it")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        total = self.groups * self.frames
        pictures = np.lib.format.open_memmap(
            self.folder / "pictures.npy", "w+", np.uint8, (total, self.size, self.size, 3)
        )
        shape = (total, MAX_PEOPLE, self.mask_size, self.mask_size)
        masks = np.lib.format.open_memmap(self.folder / "masks.npy", "w+", np.uint8, shape)
        heads = np.lib.format.open_memmap(self.folder / "heads.npy", "w+", np.uint8, shape)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rendered = pool.map(self._render_group, range(self.groups), chunksize=16)
            for index, parts in enumerate(track(rendered, "rendering", total=self.groups)):
                for array, part in zip((pictures, masks, heads), parts, strict=True):
                    array[index * self.frames : (index + 1) * self.frames] = part
        for array in (pictures, masks, heads):
            array.flush()
        record.write_text(json.dumps(self._description()))

    def _render_group(self, index: int) -> tuple[npt.NDArray[np.uint8], ...]:
        group = self.group(index)
        images = np.zeros((self.frames, self.size, self.size, 3), np.uint8)
        masks = np.zeros((self.frames, MAX_PEOPLE, self.mask_size, self.mask_size), np.uint8)
        heads = np.zeros_like(masks)
        for frame in range(self.frames):
            picture = render(group, frame, self.size)
            images[frame] = picture.image
            for place, person in enumerate(picture.people):
                masks[frame, place] = self._coverage(person.mask)
                heads[frame, place] = self._coverage(person.mask & _head_area(person.face_box, self.size))
        return images, masks, heads

    def _coverage(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        block = self.size // self.mask_size
        blocks = mask.reshape(self.mask_size, block, self.mask_size, block)
        coverage: npt.NDArray[np.uint8] = np.round(255 * blocks.mean((1, 3))).astype(np.uint8)
        return coverage


def _head_area(face: tuple[float, float, float, float], size: int) -> npt.NDArray[np.bool_]:
    """The face box [left, top, right, bottom] with room for hair and hats, as a bool [size, size] rectangle."""
    left, top, right, bottom = face
    wide, high = 0.35 * (right - left), 0.5 * (bottom - top)
    y, x = np.mgrid[:size, :size] + 0.5
    return np.asarray((x > left - wide) & (x < right + wide) & (y > top - high) & (y < bottom + 0.2 * high))
