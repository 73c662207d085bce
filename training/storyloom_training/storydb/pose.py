"""Named poses as joint angles, and the skeleton they give.

Units: one head height. The origin is the base of the neck, x to the right, y down. Angles in degrees from
straight down, positive away from the body's middle line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from storyloom_training.storydb.pen import Point

KEYPOINTS = (
    "head", "neck", "left shoulder", "left elbow", "left hand", "right shoulder", "right elbow", "right hand",
    "left hip", "left knee", "left foot", "right hip", "right knee", "right foot",
)  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """Angles (upper, lower) of each limb; left is the picture's left. `held` names what the hands hold."""

    left_arm: tuple[float, float] = (12, 6)
    right_arm: tuple[float, float] = (12, 6)
    left_leg: tuple[float, float] = (4, 2)
    right_leg: tuple[float, float] = (4, 2)
    lean: float = 0.0
    lift: float = 0.0
    seated: bool = False
    held: str = ""


POSES = {
    "standing": Pose(),
    "walking": Pose((24, 10), (24, 10), (20, 4), (20, -6), lean=2),
    "running": Pose((42, -60), (42, -60), (40, -20), (34, -50), lean=8, lift=0.1),
    "sitting": Pose((14, -25), (14, -25), (42, -6), (42, -6), seated=True),
    "waving": Pose((12, 6), (140, 165), (4, 2), (4, 2)),
    "reading": Pose((16, -70), (16, -70), (4, 2), (4, 2), held="book"),
    "dancing": Pose((118, 150), (70, 40), (8, 4), (30, -20), lean=-6),
    "jumping": Pose((140, 152), (140, 152), (34, -42), (34, -42), lift=0.35),
    "drinking": Pose((12, 6), (20, -128), (4, 2), (4, 2), held="cup"),
    "flowers": Pose((18, -60), (18, -80), (4, 2), (4, 2), held="flowers"),
    "pointing": Pose((12, 6), (88, 92), (4, 2), (6, 2), held=""),
    "painting": Pose((12, 6), (62, 112), (4, 2), (6, 2), held="brush"),
    "cooking": Pose((14, -30), (34, 70), (4, 2), (4, 2), held="pan"),
    "thinking": Pose((12, -70), (24, -138), (4, 2), (4, 2)),
    "hands on hips": Pose((48, -44), (48, -44), (8, 4), (8, 4)),
    "guitar": Pose((34, -76), (52, 12), (6, 2), (6, 2), held="guitar"),
}


@dataclass(frozen=True)
class Build:
    """Proportions in head heights."""

    shoulder: float
    hip: float
    torso: float
    arm: float
    leg: float
    limb: float  # thickness of a sleeve


BUILDS = {
    ("child", "female"): Build(0.36, 0.24, 0.92, 0.44, 0.46, 0.22),
    ("child", "male"): Build(0.38, 0.24, 0.92, 0.44, 0.46, 0.23),
    ("young", "female"): Build(0.44, 0.30, 1.22, 0.60, 0.74, 0.24),
    ("young", "male"): Build(0.55, 0.32, 1.26, 0.62, 0.74, 0.29),
    ("middle-aged", "female"): Build(0.48, 0.36, 1.22, 0.60, 0.70, 0.27),
    ("middle-aged", "male"): Build(0.60, 0.40, 1.26, 0.62, 0.70, 0.32),
    ("elderly", "female"): Build(0.44, 0.36, 1.14, 0.56, 0.62, 0.25),
    ("elderly", "male"): Build(0.52, 0.36, 1.18, 0.58, 0.64, 0.28),
}


def _limb(root: Point, angles: tuple[float, float], lengths: tuple[float, float], side: int) -> tuple[Point, Point]:
    middle = (
        root[0] + side * lengths[0] * math.sin(math.radians(angles[0])),
        root[1] + lengths[0] * math.cos(math.radians(angles[0])),
    )
    end = (
        middle[0] + side * lengths[1] * math.sin(math.radians(angles[1])),
        middle[1] + lengths[1] * math.cos(math.radians(angles[1])),
    )
    return middle, end


def skeleton(build: Build, pose: Pose) -> dict[str, Point]:
    """Joint positions by the names in `KEYPOINTS`; `lift` and `lean` are left to the caller's transform."""
    points: dict[str, Point] = {"head": (0.0, -0.55), "neck": (0.0, 0.0)}
    leg = build.leg * (0.72 if pose.seated else 1.0)
    for name, side, arm, legs in (
        ("left", -1, pose.left_arm, pose.left_leg),
        ("right", 1, pose.right_arm, pose.right_leg),
    ):
        shoulder = (side * build.shoulder, 0.16)
        hip = (side * build.hip * 0.55, build.torso)
        points[f"{name} shoulder"], points[f"{name} hip"] = shoulder, hip
        points[f"{name} elbow"], points[f"{name} hand"] = _limb(shoulder, arm, (build.arm, build.arm), side)
        points[f"{name} knee"], points[f"{name} foot"] = _limb(hip, legs, (leg, leg), side)
    return points


def height(build: Build) -> float:
    """Standing height from the top of the head to the soles, in head heights."""
    return 1.08 + build.torso + 2 * build.leg + 0.12
