"""Renders one frame of a group, with everything known about it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
import skia

from storyloom_training.storydb.body import draw_person
from storyloom_training.storydb.groups import FrameRecord, Group
from storyloom_training.storydb.head import HEAD, face_layout
from storyloom_training.storydb.pen import Pen, Point
from storyloom_training.storydb.people import Person
from storyloom_training.storydb.pose import BUILDS, KEYPOINTS, POSES, height
from storyloom_training.storydb.scenes import draw_foreground, draw_scene


@dataclass(frozen=True)
class PersonTruth:
    """Where one person is, in pixels (x, y); points outside the picture are kept."""

    mask: npt.NDArray[np.bool_]  # [size, size], True where this person is seen
    face_box: tuple[float, float, float, float]  # left, top, right, bottom
    landmarks: tuple[Point, ...]  # five: eyes, nose, mouth corners, picture left first
    keypoints: dict[str, Point]  # names as in pose.KEYPOINTS
    attributes: dict[str, str]


@dataclass(frozen=True)
class Picture:
    """A rendered frame: `image` is uint8 [size, size, 3] RGB."""

    image: npt.NDArray[np.uint8]
    people: tuple[PersonTruth, ...]


@dataclass(frozen=True)
class _Placement:
    """Neck position and head height in picture units."""

    x: float
    y: float
    scale: float


def _place(rng: Random, frame: FrameRecord, cast: tuple[Person, ...]) -> list[_Placement]:
    count = len(cast)
    shrink = {1: 1.0, 2: 0.86, 3: 0.68}[count]
    places = []
    for index, person in enumerate(cast):
        child = person.age == "child"
        tall = height(BUILDS[person.age, person.gender])
        pose = POSES[frame.poses[index]]
        x = (index + 0.5) / count if count > 1 else 0.5
        x += rng.uniform(-0.06, 0.06) / count
        if frame.framing == "full body":
            scale = shrink * rng.uniform(0.84, 0.9) / max(tall, 3.9)
            feet = rng.uniform(0.93, 0.97) - pose.lift * scale - (0.2 * scale if pose.seated else 0)
            places.append(_Placement(x, feet - (tall - 1.08) * scale, scale))
        elif frame.framing == "portrait":
            scale = shrink * rng.uniform(0.34, 0.4)
            places.append(_Placement(x, rng.uniform(0.5, 0.54) + (0.12 * scale if child and count > 1 else 0), scale))
        else:
            scale = rng.uniform(0.52, 0.6)
            places.append(_Placement(x, rng.uniform(0.74, 0.78), scale))
    return places


def blank(size: int) -> tuple[npt.NDArray[np.uint8], skia.Surface]:
    """Pixels uint8 [size, size, 4], all 0, and a surface that draws on them in parts of the picture."""
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    surface = skia.Surface.MakeRasterDirect(
        skia.ImageInfo.Make(size, size, skia.ColorType.kRGBA_8888_ColorType, skia.AlphaType.kPremul_AlphaType), pixels
    )
    surface.getCanvas().scale(size, size)
    return pixels, surface


def _over(below: npt.NDArray[np.float32], above: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    alpha = above[..., 3:].astype(np.float32) / 255
    return np.asarray(above[..., :3] + below * (1 - alpha), dtype=np.float32)


def render(group: Group, index: int, size: int) -> Picture:
    """Draws frame `index` of a group at `size` x `size` pixels; the same arguments give the same bytes."""
    frame = group.frames[index]
    rng = Random(frame.seed)  # noqa: S311
    pixels, surface = blank(size)
    draw_scene(Pen(surface.getCanvas(), line=0.008), rng, frame.scene, frame.time)
    image = pixels[..., :3].astype(np.float32)
    alphas: list[npt.NDArray[np.uint8]] = []
    people = []
    for person, place, pose, expression in zip(
        group.cast, _place(rng, frame, group.cast), frame.poses, frame.expressions, strict=True
    ):
        layer, person_surface = blank(size)
        canvas = person_surface.getCanvas()
        canvas.translate(place.x, place.y)
        canvas.scale(place.scale, place.scale)
        joints = draw_person(canvas, person, pose, expression)
        image = _over(image, layer)
        alphas.append(layer[..., 3])
        people.append((person, place, joints))
    front, front_surface = blank(size)
    draw_foreground(Pen(front_surface.getCanvas(), line=0.008), rng, frame.scene)
    image = _over(image, front)
    alphas.append(front[..., 3])
    masks = _visible(alphas)
    truths = tuple(
        _truth(person, place, joints, mask, size) for (person, place, joints), mask in zip(people, masks, strict=True)
    )
    return Picture(np.clip(image + 0.5, 0, 255).astype(np.uint8), truths)


def _visible(alphas: list[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.bool_]]:
    """A mask per person: opaque there, and covered by nobody and nothing drawn later (the last layer)."""
    masks = []
    for index, alpha in enumerate(alphas[:-1]):
        covered = np.zeros(alpha.shape, dtype=bool)
        for later in alphas[index + 1 :]:
            covered |= later > 127
        masks.append((alpha > 127) & ~covered)
    return masks


def _truth(
    person: Person, place: _Placement, joints: dict[str, Point], mask: npt.NDArray[np.bool_], size: int
) -> PersonTruth:
    def pixel(point: Point) -> Point:
        return ((place.x + point[0] * place.scale) * size, (place.y + point[1] * place.scale) * size)

    face = face_layout(person)
    shift = joints["head"][0] - HEAD[0], joints["head"][1] - HEAD[1]  # the head moves when the body leans
    left, top = pixel((joints["head"][0] - face.rx, joints["head"][1] - face.ry))
    right, bottom = pixel((joints["head"][0] + face.rx, joints["head"][1] + face.ry))
    return PersonTruth(
        mask=mask,
        face_box=(left, top, right, bottom),
        landmarks=tuple(pixel((x + shift[0], y + shift[1])) for x, y in face.landmarks()),
        keypoints={name: pixel(joints[name]) for name in KEYPOINTS},
        attributes=person.attributes(),
    )
