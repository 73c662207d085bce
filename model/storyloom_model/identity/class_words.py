"""The class word of a description: the noun that says what a character is. Pure text: no torch.

Methods that write a person into the text do so at this word ("girl" of "a girl with red hair"). It is the last word of
the description's first noun phrase, which ends at a mark (comma, colon, bracket, ...) or at the first word that begins
what is said of the noun (with, in, who, wearing, ...). Where that finds the wrong word, ``img`` behind the right one
says so, as in PhotoMaker's own prompts ("Mia, a girl img with red hair"); no text encoder reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from storyloom_model.prompts import ComposedPrompt, Span

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_TRIGGER = re.compile(r"(?<=\w)\s+img\b")
_MARK = re.compile(r"[^\w\s'\u2019-]|\s-\s")
_MODIFIERS = """
about after and around as at behind before beside between by called carrying dressed for from having her his holding in
inside into is like named near of on or over riding sitting smiling standing than that their under walking was wearing
when where which while who whom whose with without
"""
_BEGINS_MODIFIER = frozenset(_MODIFIERS.split())


@dataclass(frozen=True, slots=True)
class WordedPrompt:
    """A prompt without triggers, and the class word of every mention of each character in it, in order."""

    prompt: ComposedPrompt
    words: Mapping[str, tuple[Span, ...]]


def worded(prompt: ComposedPrompt) -> WordedPrompt:
    """Finds the class words of a prompt and takes the triggers out of it.

    A mention without any word has no class word.
    """
    mentions = sorted((start, end, name) for name, spans in prompt.spans.items() for start, end in spans)
    text, read = "", 0
    spans: dict[str, list[Span]] = {name: [] for name in prompt.spans}
    words: dict[str, list[Span]] = {name: [] for name in prompt.spans}
    for start, end, name in mentions:
        text += prompt.text[read:start]
        description, word = _described(prompt.text[start:end])
        if word is not None:
            words[name].append((len(text) + word[0], len(text) + word[1]))
        spans[name].append((len(text), len(text) + len(description)))
        text += description
        read = end
    whole = ComposedPrompt(text + prompt.text[read:], {name: tuple(found) for name, found in spans.items()})
    return WordedPrompt(whole, {name: tuple(found) for name, found in words.items()})


def class_word(description: str) -> Span | None:
    """Where the class word of a description without a trigger is; None: it has no word."""
    mark = _MARK.search(description, _first_word(description))
    phrase = list(_WORD.finditer(description, 0, mark.start() if mark else len(description)))
    if not phrase:
        return None
    end = next(
        (place for place, word in enumerate(phrase) if place and word[0].lower() in _BEGINS_MODIFIER), len(phrase)
    )
    return phrase[end - 1].span()


def word_for(description: str) -> str:
    """The class word of a description, with a trigger or without; all of it where there is none. No full stop in it."""
    text, span = _described(description)
    return (text if span is None else text[slice(*span)]).replace(".", " ").strip()


def _described(description: str) -> tuple[str, Span | None]:
    """The description without its trigger, and its class word."""
    trigger = _TRIGGER.search(description)
    if trigger is None:
        return description, class_word(description)
    *_, word = _WORD.finditer(description, 0, trigger.start())
    return description[: trigger.start()] + description[trigger.end() :], word.span()


def _first_word(description: str) -> int:
    word = _WORD.search(description)
    return word.end() if word else 0
