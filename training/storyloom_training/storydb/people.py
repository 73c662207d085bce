"""Who is in a story: identity and outfit, sampled from a generator. Plain values, no drawing."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from storyloom_training.storydb import vocabulary as words


@dataclass(frozen=True)
class Garment:
    """A piece of clothing; `colour` names an entry of `vocabulary.COLOUR`."""

    kind: str
    colour: str
    pattern: str = "plain"


@dataclass(frozen=True)
class Person:
    """One member of a cast: everything that stays the same from picture to picture."""

    age: str
    gender: str
    skin: str
    face_shape: str
    eye_colour: str
    brows: str
    nose: str
    mouth: str
    hair_style: str
    hair_colour: str
    glasses: str
    facial_hair: str
    top: Garment
    bottom: Garment | None  # None under a dress
    hat: Garment | None
    shoe_colour: str

    def attributes(self) -> dict[str, str]:
        """The record that attribute readers are trained on: attribute name -> value."""
        return {
            "age": self.age,
            "gender": self.gender,
            "skin": self.skin,
            "hair style": self.hair_style,
            "hair colour": "none" if self.hair_style == "bald" else self.hair_colour,
            "glasses": self.glasses,
            "facial hair": self.facial_hair,
            "top": self.top.kind,
            "top colour": self.top.colour,
            "top pattern": self.top.pattern,
            "bottom": self.bottom.kind if self.bottom else "none",
            "bottom colour": self.bottom.colour if self.bottom else "none",
            "hat": self.hat.kind if self.hat else "none",
        }


def _hair_colour(rng: Random, age: str) -> str:
    if age == "elderly":
        return rng.choice(("gray", "white", "gray", "white", "black", "brown"))
    return rng.choice(("black", "dark brown", "brown", "blonde", "red"))


def _hair_style(rng: Random, age: str, gender: str) -> str:
    if gender == "female":
        return rng.choice((*words.LONG_STYLES, "short curly", "afro"))
    if age != "child" and rng.random() < 0.12:
        return "bald"
    return rng.choice(("short straight", "short curly", "spiky", "afro", "short straight", "shoulder straight"))


def _hat(rng: Random) -> Garment | None:
    if rng.random() < 0.8:
        return None
    kind = rng.choice(("cap", "beanie", "straw hat"))
    return Garment(kind, "yellow" if kind == "straw hat" else rng.choice(tuple(words.COLOUR)))


def _outfit(rng: Random, gender: str) -> tuple[Garment, Garment | None]:
    kinds = words.TOPS if gender == "female" else words.TOPS[:-1]
    pattern = rng.choice(("plain", "plain", "plain", *words.PATTERNS[1:]))
    top = Garment(rng.choice(kinds), rng.choice(tuple(words.COLOUR)), pattern)
    if top.kind == "dress":
        return top, None
    bottoms = words.BOTTOMS if gender == "female" else ("jeans", "trousers", "shorts")
    kind = rng.choice(bottoms)
    colours = ("blue", "navy") if kind == "jeans" else tuple(c for c in words.COLOUR if c != top.colour)
    return top, Garment(kind, rng.choice(colours))


def sample_person(rng: Random) -> Person:
    """Draws one identity with its outfit; the same generator state gives the same person."""
    gender = rng.choice(("female", "male"))
    age = rng.choice(tuple(words.AGE))
    beard_odds = 0.45 if gender == "male" and age != "child" else 0.0
    glasses_odds = 0.4
    top, bottom = _outfit(rng, gender)
    return Person(
        age=age,
        gender=gender,
        skin=rng.choice(tuple(words.SKIN)),
        face_shape=rng.choice(words.FACE_SHAPES),
        eye_colour=rng.choice(tuple(words.EYE_COLOUR)),
        brows=rng.choice(words.BROWS),
        nose=rng.choice(words.NOSES),
        mouth=rng.choice(words.MOUTHS),
        hair_style=_hair_style(rng, age, gender),
        hair_colour=_hair_colour(rng, age),
        glasses=rng.choice(("round", "square", "sunglasses")) if rng.random() < glasses_odds else "none",
        facial_hair=rng.choice(("mustache", "goatee", "beard")) if rng.random() < beard_odds else "none",
        top=top,
        bottom=bottom,
        hat=_hat(rng),
        shoe_colour=rng.choice(("black", "brown", "white", "red", "navy")),
    )
