"""Settings given on the command line, which win over those of a story file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from pydantic import ValidationError

from storyloom._story import Story


@dataclass(frozen=True, slots=True)
class SettingOption:
    """An option for one setting.

    :ivar option: as people write it, such as ``"--steps"``.
    :ivar path: keys under a story's settings, such as ``("consistency", "adapter")``.
    :ivar value: None when the option was not given.
    """

    option: str
    path: tuple[str, ...]
    value: object


def apply(options: Sequence[SettingOption], story: Story) -> Story:
    """Returns `story` with the given options in place of its own settings.

    :raises typer.BadParameter: when a value makes no sense, whatever the model.
    """
    changes: dict[str, Any] = {}
    for option in _given(options):
        level = changes
        for key in option.path[:-1]:
            level = level.setdefault(key, {})
        level[option.path[-1]] = option.value
    try:
        return story.with_settings(**changes)
    except ValidationError as error:
        names = given_fields(options)
        faults = error.errors(include_url=False)
        texts = [f"{names['.'.join(map(str, fault['loc']))]}: {fault['msg']}" for fault in faults]
        raise typer.BadParameter("; ".join(texts)) from error


def given_fields(options: Sequence[SettingOption]) -> dict[str, str]:
    """Returns the option that set each field, such as ``{"settings.steps": "--steps"}``."""
    return {".".join(("settings", *option.path)): option.option for option in _given(options)}


def _given(options: Sequence[SettingOption]) -> list[SettingOption]:
    return [option for option in options if option.value is not None]
