"""Captions: natural English with the characters' descriptions marked.

A description names only some of what a person looks like; the rest is what consistency has to carry from frame to
frame. Wording varies from caption to caption, but one description is shared by all frames of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.groups import FrameRecord, Group
from storyloom_training.storydb.people import Garment, Person


@dataclass(frozen=True)
class Caption:
    """`spans[k]` is the (start, end) character range of person k's description in `text`."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Description:
    """Words for one person, and the attributes they state (names as in `Person.attributes`)."""

    text: str
    stated: frozenset[str]


@dataclass(frozen=True)
class FullDescription:
    """Words for all that words can say of a person; `ends` is where the phrases end."""

    text: str
    ends: tuple[int, ...]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _garment(garment: Garment, *, say_pattern: bool = True) -> str:
    pattern = "" if garment.pattern == "plain" or not say_pattern else f"{garment.pattern} "
    phrase = f"{garment.colour} {pattern}{garment.kind}"
    return phrase if garment.kind.endswith("s") and garment.kind != "dress" else _article(phrase)


def _features(rng: Random, person: Person, stated: set[str]) -> list[str]:
    features = []
    if rng.random() < 0.85:
        features.append(rng.choice(words.HAIR_STYLE[person.hair_style]).format(colour=person.hair_colour))
        stated |= {"hair style", "hair colour"}
    if person.glasses != "none" and rng.random() < 0.85:
        features.append(rng.choice(words.GLASSES[person.glasses][:1] * 3 + words.GLASSES[person.glasses]))
        stated.add("glasses")
    if person.facial_hair != "none" and rng.random() < 0.85:
        features.append(rng.choice(words.FACIAL_HAIR[person.facial_hair]))
        stated.add("facial hair")
    if rng.random() < 0.4:
        features.append(f"{person.skin} skin")
        stated.add("skin")
    return features


def _clothes(rng: Random, person: Person, stated: set[str]) -> list[str]:
    clothes = []
    if person.hat is not None and rng.random() < 0.85:
        clothes.append(words.HATS[person.hat.kind][0].format(colour=person.hat.colour).replace("a orange", "an orange"))
        stated.add("hat")
    if rng.random() < 0.8:
        clothes.append(_garment(person.top))
        stated |= {"top", "top colour", "top pattern"}
        if person.bottom is not None and rng.random() < 0.5:
            clothes.append(_garment(person.bottom, say_pattern=False))
            stated |= {"bottom", "bottom colour"}
    return clothes


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def describe(rng: Random, person: Person) -> Description:
    """Puts a person into words, leaving some attributes out."""
    stated = {"age", "gender"}
    age = rng.choice(words.AGE[person.age])
    noun = rng.choice(words.NOUN[person.age, person.gender])
    text = _article(f"{age} {noun}")
    features = _features(rng, person, stated)
    clothes = _clothes(rng, person, stated)
    if features:
        text += " with " + _join(features)
    if clothes:
        text += (", wearing " if features else " wearing ") + _join(clothes)
    return Description(text, frozenset(stated))


def describe_briefly(rng: Random, person: Person, *, clothes: bool) -> Description:
    """Says who a person is and at most what they wear; the rest is for references to show."""
    stated = {"gender"}
    noun = rng.choice(words.NOUN[person.age, person.gender])
    if rng.random() < 0.5:
        noun = f"{rng.choice(words.AGE[person.age])} {noun}"
        stated.add("age")
    worn = _clothes(rng, person, stated) if clothes else []
    return Description(_article(noun) + (" wearing " + _join(worn) if worn else ""), frozenset(stated))


def describe_in_part(rng: Random, person: Person, *, full: float, clothes: float) -> Description:
    """Says everything with odds `full`, the garments alone with odds `clothes`, and else hardly more than "a woman"."""
    said = rng.random()
    if said < full:
        return describe(rng, person)
    return describe_briefly(rng, person, clothes=said < full + clothes)


def describe_fully(rng: Random, person: Person, *, clothes: bool) -> FullDescription:
    """Puts a face, and with `clothes` what is worn too, into words that leave nothing out.

    The phrases are the person, the hair, what is on the face, the skin; then hat, top and bottom.
    """
    text = _article(f"{rng.choice(words.AGE[person.age])} {rng.choice(words.NOUN[person.age, person.gender])}")
    ends = [len(text)]
    text += f" with {rng.choice(words.HAIR_STYLE[person.hair_style]).format(colour=person.hair_colour)}"
    ends.append(len(text))
    for table, value in ((words.GLASSES, person.glasses), (words.FACIAL_HAIR, person.facial_hair)):
        if value != "none":
            text += f", {table[value][0]}"
    ends.append(len(text))
    text += f" and {person.skin} skin"
    ends.append(len(text))
    if clothes:
        hat = [] if person.hat is None else [_article(f"{person.hat.colour} {person.hat.kind}")]
        garments = [_garment(garment) for garment in (person.top, person.bottom) if garment is not None]
        for place, phrase in enumerate(hat + garments):
            text += (" and " if place else ", wearing ") + phrase
            ends.append(len(text))
    return FullDescription(text, tuple(ends))


def describe_cast(group: Group, variant: int = 0) -> tuple[Description, ...]:
    """The shared descriptions of a group; each variant words them anew."""
    rng = Random(f"describe:{group.split.value}:{group.index}:{variant}")  # noqa: S311
    return tuple(describe(rng, person) for person in group.cast)


def setting(rng: Random, frame: FrameRecord) -> str:
    """What happens and where, as it follows the descriptions."""
    actions = [rng.choice(words.ACTIONS[pose]) for pose in frame.poses]
    place = rng.choice(words.SCENES[frame.scene])
    when = rng.choice(words.TIMES[frame.time])
    action = actions[0] if len(set(frame.poses)) == 1 else " and ".join(actions)
    return " ".join(part for part in (action, place, when) if part)


def write_caption(rng: Random, frame: FrameRecord, descriptions: tuple[str, ...]) -> Caption:
    """A caption of one frame from the descriptions of its cast."""
    text = "" if rng.random() < 0.15 else rng.choice(words.FRAMINGS[frame.framing]) + " "
    spans = []
    for position, description in enumerate(descriptions):
        if position:
            text += " and "
        spans.append((len(text), len(text) + len(description)))
        text += description
    verb = " is " if len(descriptions) == 1 else " are "
    separator = rng.choice((", ", ", ", " ", verb))
    return Caption(text + separator + setting(rng, frame), tuple(spans))
