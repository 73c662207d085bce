"""The methods of identity adapters by the names that manifests and files give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from storyloom_model.identity.adapter import IdentityAdapter, StreamMaker
from storyloom_model.identity.published.adapters import METHODS, read_adapter
from storyloom_model.identity.storymaker import StoryMakerStreams
from storyloom_model.identity.storynizor import StorynizorInjector

Reader: TypeAlias = Callable[[str, str, Mapping[str, Tensor], Any], IdentityAdapter]
"""Method, name of the adapter, weights by the file's names, UNet -> the adapter. Raises PackageError."""

MAKERS: dict[str, type[StreamMaker]] = {"storymaker": StoryMakerStreams, "storynizor": StorynizorInjector}
"""Of files in our own form."""

READERS: dict[str, Reader] = dict.fromkeys(METHODS, read_adapter)
"""Of files in the forms that others publish."""
