"""What is read from a picture: the attributes, their values, and where each can be seen at all. Plain values."""

from __future__ import annotations

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.groups import Group
from storyloom_training.storydb.people import Person
from storyloom_training.storydb.pose import POSES

HEADS: dict[str, tuple[str, ...]] = {
    "age": tuple(words.AGE),
    "gender": ("female", "male"),
    "skin": tuple(words.SKIN),
    "hair style": tuple(words.HAIR_STYLE),
    "hair colour": (*words.HAIR_COLOUR, "none"),
    "glasses": tuple(words.GLASSES),
    "facial hair": tuple(words.FACIAL_HAIR),
    "top": tuple(kind for kind in words.TOPS if kind != "coat"),
    "top colour": tuple(words.COLOUR),
    "top pattern": words.PATTERNS,
    "bottom": (*words.BOTTOMS, "none"),
    "bottom colour": (*words.COLOUR, "none"),
    "hat": tuple(words.HATS),
    "scene": tuple(words.SCENES),
    "time": tuple(words.TIMES),
    "framing": tuple(words.FRAMINGS),
    "pose": tuple(POSES),
}
"""Attribute name -> the values it can have; the order is that of the reader's outputs."""

PERSON = tuple(HEADS)[:13]
"""The attributes that a person keeps from frame to frame: identity and outfit, as in `Person.attributes`."""

_LEGS = frozenset({"bottom", "bottom colour"})
VISIBLE: dict[str, frozenset[str]] = {
    "close-up": frozenset(HEADS) - _LEGS - {"top", "pose"},
    "portrait": frozenset(HEADS) - _LEGS,
    "full body": frozenset(HEADS),
}
"""Framing -> the attributes that such a picture shows. A close-up ends at the collar, a portrait at the waist."""

Reading = dict[str, str]
"""Attribute name -> value, one entry per head."""


READ_AS = {("top", "coat"): "jacket"}
"""Values that a reader can't tell apart: a coat is a jacket whose hem lies lower, and a portrait ends above either."""


def read_as(person: Person) -> Reading:
    """A person's attributes as a perfect reader names them."""
    return {name: READ_AS.get((name, value), value) for name, value in person.attributes().items()}


def truth(group: Group, frame: int) -> Reading:
    """What a picture of a one-person group shows, by the names in `HEADS`."""
    record = group.frames[frame]
    setting = {"scene": record.scene, "time": record.time, "framing": record.framing, "pose": record.poses[0]}
    return read_as(group.cast[0]) | setting
