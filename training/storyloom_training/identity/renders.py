"""Renders of people for the encoders' training sets: pictures of chosen size, and crops cut out of them with jitter."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from storyloom_model.identity.encoders.crops import Pixels, aligned_face, whitened_character
from storyloom_training.identity.labels import labels, other_outfit
from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.groups import FrameRecord, Group, Split
from storyloom_training.storydb.people import Person
from storyloom_training.storydb.picture import Picture, render
from storyloom_training.storydb.pose import POSES

FACE_WIDTH = {"close-up": 0.44, "portrait": 0.29, "full body": 0.165}
"""Width of a face as a fraction of the picture's, about."""


@dataclass(frozen=True)
class Crop:
    """A crop uint8 [size, size, 3] RGB and the classes of what it shows, as `labels.labels`."""

    pixels: Pixels
    labels: list[int]


def draw_frame(rng: Random, people: int, framings: tuple[str, ...]) -> FrameRecord:
    """A frame in any scene, pose and light."""
    return FrameRecord(
        scene=rng.choice(tuple(words.SCENES)),
        time=rng.choice(("day", "day", "day", "sunset", "night")),
        framing=rng.choice(framings),
        poses=tuple(rng.choice(tuple(POSES)) for _ in range(people)),
        expressions=tuple(rng.choice(words.EXPRESSIONS) for _ in range(people)),
        seed=rng.getrandbits(48),
    )


def picture_of(cast: tuple[Person, ...], record: FrameRecord, size: int) -> Picture:
    return render(Group(Split.TRAIN, 0, cast, (record,)), 0, size)


def compress(pixels: Pixels, rng: Random) -> Pixels:
    """As a JPEG or a picture from the web would have it, one time in two."""
    if rng.random() < 0.5:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=rng.randint(35, 95))
    return np.asarray(Image.open(buffer))


def face_crop(person: Person, rng: Random, size: int) -> Crop:
    """A face in a new outfit and setting, 20 to 88 pixels wide before it is aligned, a little beside its place."""
    dressed = other_outfit(person, rng)
    record = draw_frame(rng, 1, ("close-up",) * 3 + ("portrait",) * 4 + ("full body",))
    wide = 20 * (88 / 20) ** rng.random()
    side = int(min(320, max(96, wide / FACE_WIDTH[record.framing]))) // 16 * 16
    picture = picture_of((dressed,), record, side)
    landmarks = np.array(picture.people[0].landmarks)
    slack = 0.04 * float(np.ptp(landmarks[:, 0]))
    landmarks += np.array([[rng.gauss(0, slack) for _ in range(2)] for _ in range(5)])
    landmarks += np.array([rng.gauss(0, slack), rng.gauss(0, slack)])
    crop = aligned_face(compress(picture.image, rng), landmarks, size)
    return Crop(crop, labels(dressed, record.framing, record.expressions[0], face_only=True))


def character_crops(cast: tuple[Person, ...], rng: Random, size: int) -> Iterator[Crop]:
    """Each person of a picture cut out on white; those of whom too little is seen are left out."""
    framings = ("portrait", "full body", "full body") if len(cast) > 1 else ("close-up", "portrait", "full body")
    record = draw_frame(rng, len(cast), framings)
    side = rng.choice((128, 128, 160, 224))
    picture = picture_of(cast, record, side)
    pixels = compress(picture.image, rng)
    for person, truth, expression in zip(cast, picture.people, record.expressions, strict=True):
        if truth.mask.sum() < 0.02 * side * side:
            continue
        mask = worn(truth.mask, rng)
        yield Crop(whitened_character(pixels, mask, size), labels(person, record.framing, expression))


def worn(mask: np.ndarray, rng: Random) -> np.ndarray:
    """A mask as a segmenter would find it: sometimes a pixel wider or narrower."""
    shift = rng.choice((0, 0, 1, -1))
    if not shift:
        return mask
    base = mask if shift > 0 else ~mask
    padded = np.pad(base, 1, mode="edge")
    grown = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    result = grown if shift > 0 else ~grown
    return result if result.any() else mask
