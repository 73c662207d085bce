"""Where the faces of the people in a rendered set are: for drawings of their landmarks, and for portraits."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from os import cpu_count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from storyloom_model.controlnets.pictures import draw_faces
from storyloom_model.identity.encoders.crops import portrait
from storyloom_training.storydb.dataset import MAX_PEOPLE, StoryDB
from storyloom_training.storydb.picture import render

_SIZE = 8
"""Faces are in the same place at every size, and small pictures are quickly drawn."""
_LANDMARKS = 5


@dataclass(frozen=True)
class PeopleFaces:
    """`points` float32 [pictures, people, 7, 2] are x and y in parts of the picture: the five landmarks, then the
    face's left top and right bottom; NaN where there is nobody. `data` is the set.
    """

    points: npt.NDArray[np.float32]
    data: StoryDB

    def shown(self, picture: int, people: list[int]) -> npt.NDArray[np.uint8]:
        """The drawing of some people's faces in one picture, as an IdentityNet is shown it: [size, size, 3]."""
        size = self.data.size
        return draw_faces([self.points[picture, one, :_LANDMARKS] * size for one in people], size, size)

    def drawings(self, pictures: list[int], people: list[list[int]]) -> Tensor:
        """Those of n pictures, [n, 3, size, size] in [0, 1]."""
        drawn = np.stack([self.shown(picture, some) for picture, some in zip(pictures, people, strict=True)])
        return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255

    def portraits(self, file: Path, table: Tensor, side: int) -> None:
        """Cuts those of all faces that are seen, uint8 [entries, side, side, 3], unless `file` is there.

        `table` [groups, frames, people] says where each entry is; see `PeopleFeatures`.
        """
        if file.exists():
            return
        made = np.zeros((int((table >= 0).sum()), side, side, 3), np.uint8)
        for group, frame, place in track((table >= 0).nonzero().tolist(), "cutting portraits"):
            picture = group * self.data.frames + frame
            (left, top), (right, bottom) = (self.points[picture, place, _LANDMARKS:] * self.data.size).tolist()
            made[table[group, frame, place]] = portrait(self.data.pictures[picture], (left, top, right, bottom), side)
        np.save(file, made)


def people_faces(file: Path, data: StoryDB, groups: int) -> PeopleFaces:
    """Those of the first groups of a set; found once and kept in `file`."""
    if not file.exists():
        with ProcessPoolExecutor(cpu_count()) as pool:
            found = pool.map(partial(_of_group, data), range(groups), chunksize=16)
            points = np.concatenate(list(track(found, "faces", total=groups)))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, points)
    known: npt.NDArray[np.float32] = np.load(file, mmap_mode="r")
    if len(known) != groups * data.frames:
        raise ValueError(f"{file} is of another data set; remove it")
    return PeopleFaces(known, data)


def _of_group(data: StoryDB, index: int) -> npt.NDArray[np.float32]:
    group = data.group(index)
    found = np.full((data.frames, MAX_PEOPLE, _LANDMARKS + 2, 2), np.nan, np.float32)
    for frame in range(data.frames):
        for place, person in enumerate(render(group, frame, _SIZE).people):
            left, top, right, bottom = person.face_box
            found[frame, place] = np.array([*person.landmarks, (left, top), (right, bottom)]) / _SIZE
    return found
