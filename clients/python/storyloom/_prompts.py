"""Character names inside frame prompts: ``{mia}`` stands for a character, ``{{`` and ``}}`` for literal braces."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|\{")
_LITERAL = {"{{": "{", "}}": "}"}


def placeholders(prompt: str) -> Iterator[str]:
    """Yields each name written as ``{name}``, in order, and ``""`` for a brace that is never closed."""
    for match in _TOKEN.finditer(prompt):
        if match[0] not in _LITERAL:
            yield match[1] or ""


def caption(prompt: str) -> str:
    """Returns the prompt as people read it: ``"{mia} is walking"`` becomes ``"mia is walking"``."""
    return _TOKEN.sub(lambda match: _LITERAL.get(match[0], match[1] or match[0]), prompt)
