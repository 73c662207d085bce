"""Parts of a character that have looks of their own, and the words that name them in a description. Pure text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from storyloom_model.manifest import Keep
from storyloom_model.prompts import ComposedPrompt, Span

Part: TypeAlias = tuple[str, str]
"""A character's name and one of ``PARTS``."""

_WORDS = {
    "face": "face eyes beard moustache mustache freckles",
    "hair": "hair haired braid braids ponytail curls bun locks blonde brunette",
    "hat": "hat cap helmet hood crown beanie headscarf turban bonnet beret headband",
    "upper": "coat jacket shirt sweater dress robe hoodie blouse suit vest cloak t-shirt top cardigan uniform gown",
    "lower": "trousers pants jeans skirt shorts leggings",
    "shoes": "shoes boots sneakers sandals slippers heels",
}
"""The first word of each names it in pictures whose words are not known."""
PARTS: tuple[str, ...] = tuple(_WORDS)
FACE = "face"
GARMENTS = frozenset({"hat", "upper", "lower", "shoes"})
_KEPT_AS: Mapping[str, Keep] = {FACE: "face", "hair": "hair", **dict.fromkeys(GARMENTS, "clothes")}
_PART_OF = {word: part for part, words in _WORDS.items() for word in words.split()}
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def first_word(part: str) -> str:
    """The plainest word for a part."""
    return _WORDS[part].split()[0]


def part_named(label: str) -> str | None:
    """The part that a label of a segmentation model means, such as "Upper-clothes" or "Left-shoe"; None: none."""
    words = [word for word in re.split(r"[^a-z]+", label.lower()) if word]
    parts = [word if word in PARTS else _PART_OF.get(word) or _PART_OF.get(f"{word}s") for word in words]
    return next((part for part in parts if part is not None), None)


def kept(part: str, keep: frozenset[str]) -> bool:
    """Whether a part is taken over from references; an empty ``keep`` takes all."""
    return not keep or _KEPT_AS[part] in keep


def part_spans(prompt: ComposedPrompt, name: str) -> dict[str, tuple[Span, ...]]:
    """Where the words for a character's parts are, in all mentions of the character; parts without a word are left out.

    Words with a hyphen count by their last half, too: "red-haired".
    """
    found: dict[str, list[Span]] = {}
    for start, end in prompt.spans.get(name, ()):
        for word in _WORD.finditer(prompt.text, start, end):
            said = word[0].lower()
            part = _PART_OF.get(said) or _PART_OF.get(said.rpartition("-")[2])
            if part is not None:
                found.setdefault(part, []).append(word.span())
    return {part: tuple(found[part]) for part in PARTS if part in found}
