"""Drawn skeletons: what the built-in model's pose ControlNet is shown, in training and by users.

On black; each limb has a colour of its own, the picture's left and right apart; a white dot marks the head.
"""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

from storyloom_training.controlnet.keypoints import Keypoints
from storyloom_training.storydb.pen import Pen
from storyloom_training.storydb.picture import blank
from storyloom_training.storydb.pose import KEYPOINTS

LIMBS = (
    ("neck", "head"),
    ("neck", "left shoulder"), ("left shoulder", "left elbow"), ("left elbow", "left hand"),
    ("neck", "left hip"), ("left hip", "left knee"), ("left knee", "left foot"),
    ("neck", "right shoulder"), ("right shoulder", "right elbow"), ("right elbow", "right hand"),
    ("neck", "right hip"), ("right hip", "right knee"), ("right knee", "right foot"),
)  # fmt: skip
_LINE, _HEAD = 0.022, 0.022
"""Width of limbs and radius of the head's dot, in parts of the picture."""


def _colour(limb: int) -> int:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(limb / len(LIMBS), 1.0, 1.0))
    return red << 16 | green << 8 | blue


COLOURS = tuple(_colour(limb) for limb in range(len(LIMBS)))


def draw_skeletons(people: Keypoints, size: int) -> npt.NDArray[np.uint8]:
    """The skeletons of one picture, [people, joints, 2] -> [size, size, 3]; later people cover earlier ones."""
    pixels, surface = blank(size)
    pen = Pen(surface.getCanvas())
    for joints in people:
        if np.isnan(joints).any():
            continue
        at = {name: (float(x), float(y)) for name, (x, y) in zip(KEYPOINTS, joints, strict=True)}
        for (start, end), colour in zip(LIMBS, COLOURS, strict=True):
            pen.stroke([at[start], at[end]], _LINE, colour)
        pen.ellipse(at["head"], _HEAD, _HEAD, 0xFFFFFF)
    return np.ascontiguousarray(pixels[..., :3])
