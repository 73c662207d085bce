"""Groups: one cast in several frames, as a StoryDB group. Everything follows from (split, index)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.people import Person, sample_person
from storyloom_training.storydb.pose import POSES


class Split(Enum):
    """Where a group belongs. Identities of one split never occur in another (see `split_of`)."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def _stable_hash(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 29)


def split_of(person: Person) -> Split:
    """Assigns an identity to a split by a hash of the visible attributes: 90 % train, 4 % validation, 6 % test.

    The split follows from what the person looks like, so that the same look can't be drawn in two splits.
    """
    looks = "/".join(person.attributes()[key] for key in sorted(person.attributes()))
    bucket = _stable_hash(looks) % 100
    return Split.TRAIN if bucket < 90 else Split.VALIDATION if bucket < 94 else Split.TEST


@dataclass(frozen=True)
class FrameRecord:
    """What one picture shows, without its cast. People stand left to right in the order of the cast."""

    scene: str
    time: str
    framing: str
    poses: tuple[str, ...]
    expressions: tuple[str, ...]
    seed: int  # of everything incidental: clutter, positions, colours of props


@dataclass(frozen=True)
class Group:
    """A cast and its frames."""

    split: Split
    index: int
    cast: tuple[Person, ...]
    frames: tuple[FrameRecord, ...]


def _sample_frame(rng: Random, people: int, scene: str) -> FrameRecord:
    time = "day" if scene in words.INDOOR else rng.choice(("day", "day", "day", "sunset", "night"))
    framings = ("close-up", "portrait", "portrait", "full body", "full body")
    return FrameRecord(
        scene=scene,
        time=time,
        framing=rng.choice(framings if people == 1 else framings[1:]),
        poses=tuple(rng.choice(tuple(POSES)) for _ in range(people)),
        expressions=tuple(rng.choice(words.EXPRESSIONS) for _ in range(people)),
        seed=rng.getrandbits(48),
    )


def sample_cast(rng: Random, split: Split, people: int) -> tuple[Person, ...]:
    """Draws people of one split."""
    cast: list[Person] = []
    while len(cast) < people:
        person = sample_person(rng)
        if split_of(person) is split:
            cast.append(person)
    return tuple(cast)


def sample_group(split: Split, index: int, *, people: int | None = None, frames: int | None = None) -> Group:
    """Draws group `index` of a split: one to three people, 5 to 12 frames unless told otherwise."""
    rng = Random(f"{split.value}:{index}")  # noqa: S311 - data, not secrets
    drawn = rng.choices((1, 2, 3), weights=(66, 30, 4))[0]
    people = drawn if people is None else people
    drawn_frames = rng.randint(5, 12)
    frames = drawn_frames if frames is None else frames
    scenes = list(words.SCENES)
    rng.shuffle(scenes)
    cast = sample_cast(rng, split, people)
    records = tuple(_sample_frame(rng, people, scenes[i % len(scenes)]) for i in range(frames))
    return Group(split, index, cast, records)
