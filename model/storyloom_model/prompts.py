"""Puts frame prompts together and finds the tokens of each character in them. Pure text: no torch.

In a frame prompt ``{name}`` stands for a character's description, ``{{`` and ``}}`` for literal braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|\{")
_LITERAL = {"{{": "{", "}}": "}"}

Span: TypeAlias = tuple[int, int]
"""First character, and the one after the last."""


@dataclass(frozen=True, slots=True)
class ComposedPrompt:
    """The full text of a frame, and the places of each character's description in it, in order."""

    text: str
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptError:
    """Why a prompt cannot be composed. ``message`` is for the writer of the prompt."""

    message: str


def compose(
    style: str, frame_prompt: str, characters: Mapping[str, str], listed: Sequence[str]
) -> ComposedPrompt | PromptError:
    """Composes the text of a frame: style, characters that are listed but not written, then the prompt.

    Every ``{name}`` becomes that character's description, and every mention counts as a place of the character.

    Args:
        style: put in front, as it is; may be empty.
        frame_prompt: what happens, with ``{name}`` for characters.
        characters: description by name, of the whole cast.
        listed: names of characters that are in the frame, whether written or not.

    Returns:
        The prompt, or what is wrong with it: an unknown name, or a brace that is never closed.
    """
    written = [match[1] for match in _TOKEN.finditer(frame_prompt) if match[0] not in _LITERAL]
    if None in written:
        return PromptError("has a { that is never closed; write {{ for a literal brace")
    unknown = [name for name in (*written, *listed) if name not in characters]
    if unknown:
        return PromptError(
            f"names {{{unknown[0]}}}, which is no character of this story; write {{{{ for a literal brace"
        )
    text = _Text()
    if style.strip():
        text.add(style.strip() + " ")
    leading = [name for name in dict.fromkeys(listed) if name not in written]
    for position, name in enumerate(leading):
        text.add(" and " if position else "")
        text.mention(name, characters[name])
    if leading:
        text.add(", ")
    _fill(text, frame_prompt.strip(), characters)
    return ComposedPrompt(text.text, {name: tuple(places) for name, places in text.spans.items()})


def token_flags(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Tells which tokens belong to a character.

    Args:
        offsets: character range of each token, as the tokenizer gives them; special tokens are empty ranges.
        spans: character ranges of the description.

    Returns:
        One flag per token: True where the token overlaps a span.
    """
    return [any(start < last and first < end for first, last in spans) for start, end in offsets]


def check_prompt(tokenizer: Any, prompt: ComposedPrompt | str, max_tokens: int) -> str | None:
    """Finds what a text encoder would not read.

    Args:
        tokenizer: a fast transformers tokenizer.
        prompt: a frame's prompt, or plain text.
        max_tokens: tokens that are read, the start and end tokens included.

    Returns:
        The text from the first word that does not fit to the end, or None when everything fits.
    """
    text = prompt if isinstance(prompt, str) else prompt.text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    room = max_tokens - tokenizer.num_special_tokens_to_add(pair=False)
    if len(offsets) <= room:
        return None
    cut = offsets[room][0]
    # A word that is cut in two is cut as a whole.
    while cut > 0 and not text[cut - 1].isspace():
        cut -= 1
    return text[cut:].strip()


@dataclass(slots=True)
class _Text:
    """A text that grows, and the places of the characters in it."""

    text: str = ""
    spans: dict[str, list[Span]] = field(default_factory=dict)

    def add(self, part: str) -> None:
        self.text += part

    def mention(self, name: str, description: str) -> None:
        start = len(self.text)
        self.text += description
        self.spans.setdefault(name, []).append((start, len(self.text)))


def _fill(text: _Text, prompt: str, characters: Mapping[str, str]) -> None:
    position = 0
    for match in _TOKEN.finditer(prompt):
        text.add(prompt[position : match.start()])
        if match[0] in _LITERAL:
            text.add(_LITERAL[match[0]])
        else:
            text.mention(match[1], characters[match[1]])
        position = match.end()
    text.add(prompt[position:])
