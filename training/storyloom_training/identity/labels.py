"""What crops show of a person, as class numbers. Plain values."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.groups import Split, sample_cast
from storyloom_training.storydb.people import Person, sample_person

FACE: dict[str, tuple[str, ...]] = {
    "age": tuple(words.AGE),
    "gender": ("female", "male"),
    "skin": tuple(words.SKIN),
    "face shape": words.FACE_SHAPES,
    "eye colour": tuple(words.EYE_COLOUR),
    "brows": words.BROWS,
    "nose": words.NOSES,
    "mouth": words.MOUTHS,
    "hair style": tuple(words.HAIR_STYLE),
    "hair colour": (*words.HAIR_COLOUR, "none"),
    "glasses": tuple(words.GLASSES),
    "facial hair": tuple(words.FACIAL_HAIR),
}
"""The face: what identity means to a recogniser. Everything else is outfit."""
OUTFIT: dict[str, tuple[str, ...]] = {
    "top": words.TOPS,
    "top colour": tuple(words.COLOUR),
    "top pattern": words.PATTERNS,
    "bottom": (*words.BOTTOMS, "none"),
    "bottom colour": (*words.COLOUR, "none"),
    "hat": tuple(words.HATS),
    "hat colour": (*words.COLOUR, "none"),
}
ATTRIBUTES = FACE | OUTFIT

NOT_SHOWN = -100
"""The label of what a crop does not show; cross entropy leaves it out."""

_LEGS = frozenset({"bottom", "bottom colour"})


def values(person: Person) -> dict[str, str]:
    """Attribute name -> value, for every name in `ATTRIBUTES`."""
    return person.attributes() | {
        "face shape": person.face_shape, "eye colour": person.eye_colour, "brows": person.brows, "nose": person.nose,
        "mouth": person.mouth, "hat colour": person.hat.colour if person.hat else "none",
    }  # fmt: skip


def face_key(person: Person) -> tuple[str, ...]:
    """Equal for people who have the same face."""
    said = values(person)
    return tuple(said[name] for name in FACE)


def labels(person: Person, framing: str, expression: str, *, face_only: bool = False) -> list[int]:
    """Class numbers in the order of `ATTRIBUTES`; NOT_SHOWN where the crop can't show the attribute."""
    hidden: set[str] = set(OUTFIT) if face_only else set()
    if framing != "full body":
        hidden |= _LEGS
    if framing == "close-up":
        hidden |= {"top"}
    if person.glasses == "sunglasses" or expression == "laugh" or (framing == "full body" and not face_only):
        hidden.add("eye colour")
    if framing == "full body" and not face_only:
        hidden |= {"brows", "nose", "mouth"}
    said = values(person)
    return [NOT_SHOWN if name in hidden else choices.index(said[name]) for name, choices in ATTRIBUTES.items()]


def other_outfit(person: Person, rng: Random) -> Person:
    """The same face in other clothes, with another hat or none."""
    while True:
        other = sample_person(rng)
        if other.gender == person.gender:
            return replace(person, top=other.top, bottom=other.bottom, hat=other.hat, shoe_colour=other.shoe_colour)


def faces_of(split: Split, count: int, seed: int) -> list[Person]:
    """Draws `count` people of a split, no two with the same face."""
    rng = Random(f"faces:{split.value}:{seed}")  # noqa: S311 - data, not secrets
    people: dict[tuple[str, ...], Person] = {}
    while len(people) < count:
        (person,) = sample_cast(rng, split, 1)
        people.setdefault(face_key(person), person)
    return list(people.values())
