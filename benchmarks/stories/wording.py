"""What a description and a prompt state, in the words that the built-in model knows.

The words are those of the procedural captions, and read backwards here: "short, curly white hair" is a hair style and
a hair colour. Benchmarks of others use many of the same words; what they say in other words is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from benchmarks.quality.attributes import READ_AS
from storyloom_training.storydb import vocabulary as words

Stated = dict[str, frozenset[str]]
"""Attribute -> the values that fit the words."""

_GENDER = {
    "female": ("woman", "girl", "lady", "female"),
    "male": ("man", "boy", "gentleman", "male"),
}
_CHILDREN = ("girl", "boy", "child")


def stated(description: str) -> Stated:
    """The attributes that a description of one person states."""
    text = _plain(description)
    found = {
        "gender": _one(text, _GENDER),
        "age": _age(text),
        "glasses": _glasses(text),
        "facial hair": _one(text, {name: _without_article(ways) for name, ways in words.FACIAL_HAIR.items() if ways}),
        "skin": _longest(text, {f"{name} skin": name for name in words.SKIN}),
    }
    found |= _hair(text) | _hat(text) | _garments(text)
    return {name: frozenset(values) for name, values in found.items() if values}


def scene(prompt: str) -> str | None:
    """The scene that a prompt names, or None."""
    return next(iter(_longest(_plain(prompt), _ways(words.SCENES))), None)


def framing(prompt: str) -> str | None:
    """The framing that a prompt begins with, or None."""
    text = _plain(prompt)
    return next(
        (name for name, ways in words.FRAMINGS.items() if any(text.startswith(_plain(way)) for way in ways)), None
    )


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", " ").replace("grey", "gray").split())


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text) is not None


def _ways(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {_plain(way): name for name, ways in table.items() for way in ways if way}


def _without_article(ways: Iterable[str]) -> list[str]:
    return [way.removeprefix("a ") for way in ways]


def _one(text: str, table: Mapping[str, Iterable[str]]) -> set[str]:
    return {name for name, ways in table.items() if any(_holds(text, way) for way in ways)}


def _longest(text: str, phrases: Mapping[str, str]) -> list[str]:
    """The name of the longest of the phrases that the text holds, if it holds any."""
    held = [phrase for phrase in phrases if _holds(text, phrase)]
    return [phrases[max(held, key=len)]] if held else []


def _age(text: str) -> set[str]:
    """ "Young" is a child or not by the noun; a girl or boy without it is a child too."""
    if any(_holds(text, noun) for noun in _CHILDREN):
        return {"child"}
    return _one(text, words.AGE) - {"child"}


def _glasses(text: str) -> set[str]:
    return set(_longest(text, {"round glasses": "round", "square glasses": "square", "sunglasses": "sunglasses"})) or (
        {"round", "square"} if _holds(text, "glasses") else set()
    )


def _hair(text: str) -> dict[str, set[str]]:
    phrases = {
        _plain(way.format(colour=colour)).removeprefix("a "): (style, colour)
        for style, ways in words.HAIR_STYLE.items()
        for way in ways
        for colour in words.HAIR_COLOUR
    }
    held = [phrase for phrase in phrases if _holds(text, phrase)]
    if held:
        style, colour = phrases[max(held, key=len)]
        return {"hair style": {style}, "hair colour": {"none" if style == "bald" else colour}}
    return {"hair colour": set(_longest(text, {f"{colour} hair": colour for colour in words.HAIR_COLOUR}))}


def _hat(text: str) -> dict[str, set[str]]:
    return {"hat": {name for name in words.HATS if name != "none" and _holds(text, name)}}


def _garments(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for colour, pattern, kind in _worn(text, words.TOPS):
        value = READ_AS.get(("top", kind), kind)
        found |= {"top": {value}, "top colour": {colour}, "top pattern": {pattern or "plain"}}
    for colour, _, kind in _worn(text, words.BOTTOMS):
        found |= {"bottom": {kind}, "bottom colour": {colour}}
    return found


def _worn(text: str, kinds: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Colour, pattern and kind of each garment with a colour."""
    colours, patterns = "|".join(words.COLOUR), "|".join(words.PATTERNS)
    pattern = rf"\b({colours}) (?:({patterns}) )?({'|'.join(map(re.escape, kinds))})\b"
    yield from re.findall(pattern, text)
