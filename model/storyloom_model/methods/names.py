"""The story methods by name. Loads without torch, for those that only check requests."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

MethodName: TypeAlias = Literal[
    "storynizor", "storydiffusion", "consistory", "oneprompt", "fastcomposer", "story-adapter"
]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
DEFAULT_METHOD: MethodName = "storynizor"

APART = frozenset({"oneprompt"})
"""Methods whose stories take their steps apart from those of others: their tensors have other shapes."""
