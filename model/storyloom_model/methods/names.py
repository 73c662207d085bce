"""The story methods by name. Loads without torch, for those that only check requests."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

MethodName: TypeAlias = Literal[
    "storynizor", "storydiffusion", "consistory", "oneprompt", "fastcomposer", "story-adapter"
]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
DEFAULT_METHOD: MethodName = "storynizor"

QUERIES_OF_A_PLAIN_PASS: frozenset[str] = frozenset({"consistory"})
"""Methods that take twice as many rows in some steps; see ``methods.schedule``."""

INJECTS: frozenset[str] = frozenset({"consistory"})
"""Methods that may make a story twice, the second time with features of the first; see ``methods.injection``."""

APART = frozenset({"oneprompt"})
"""Methods whose stories take their steps apart from those of others: their tensors have other shapes."""
