"""Where the joints of the people in a rendered set are."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from os import cpu_count
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from storyloom_training.storydb.dataset import MAX_PEOPLE, StoryDB
from storyloom_training.storydb.picture import render
from storyloom_training.storydb.pose import KEYPOINTS

Keypoints = npt.NDArray[np.float32]
"""[..., people, joints, 2]: x and y of the joints in the order of `pose.KEYPOINTS`, in parts of the picture; NaN where
there is nobody.
"""

_SIZE = 8
"""Joints are the same at every size, and small pictures are quickly drawn."""


def people_keypoints(file: Path, data: StoryDB) -> Keypoints:
    """Those of all pictures of a set, [pictures, people, joints, 2]; found once and kept in `file`."""
    if not file.exists():
        with ProcessPoolExecutor(cpu_count()) as pool:
            found = pool.map(partial(group_keypoints, data), range(data.groups), chunksize=16)
            groups = list(track(found, "joints", total=data.groups))
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.concatenate(groups))
    known: Keypoints = np.load(file, mmap_mode="r")
    if len(known) != data.groups * data.frames:
        raise ValueError(f"{file} is of another data set; remove it")
    return known


def group_keypoints(data: StoryDB, index: int) -> Keypoints:
    """Those of one group, [frames, people, joints, 2]."""
    group = data.group(index)
    found = np.full((data.frames, MAX_PEOPLE, len(KEYPOINTS), 2), np.nan, np.float32)
    for frame in range(data.frames):
        for place, person in enumerate(render(group, frame, _SIZE).people):
            found[frame, place] = np.array([person.keypoints[name] for name in KEYPOINTS]) / _SIZE
    return found
