"""Reads story files, and shows faults where they are written."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from storyloom._errors import Problem, StoryFileError
from storyloom._poses import Pose
from storyloom._references import Blend, Reference
from storyloom._story import Character, Consistency, Frame, FreeU, Redenoising, Rounds, Settings, Story, did_you_mean
from storyloom._yaml import Document, Mark, YamlError, parse

Loc = tuple[str | int, ...]

_EXPECTED = {
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping, `name: value` on each line",
    "model_type": "should be a mapping, `name: value` on each line",
    "tuple_type": "should be a list",
}


@dataclass(frozen=True)
class StoryFile:
    """A story and the file it was read from."""

    path: str
    story: Story
    _document: Document

    def locate(self, field: str) -> Mark | None:
        """Returns where the file says what a server's field path names, or None where the file does not say it.

        :param field: such as ``"story.frames[2].prompt"``; characters are counted in the order of the file.
        """
        loc = self._loc(field)
        return self._document.mark(loc) if self._document.has(loc) else None

    def _loc(self, field: str) -> Loc:
        parts: list[str | int] = [
            int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)(?=[.\[]|$)|\[(\d+)\]", field)
        ]
        if parts[:1] == ["story"]:
            parts = parts[1:]
        names = list(self.story.characters)
        if parts[:1] == ["characters"] and len(parts) > 1 and isinstance(parts[1], int) and parts[1] < len(names):
            parts[1] = names[parts[1]]
            parts = _in_file(parts)
        loras = list(self.story.settings.loras)
        if parts[:2] == ["settings", "loras"] and isinstance(parts[-2], int) and parts[-2] < len(loras):
            parts = ["settings", "loras", loras[parts[-2]]]
        # A frame, character or pose may be written as a plain text, rounds as a number: then that is the first field.
        short = ("prompt", "description", "picture", "count")
        while len(parts) > 2 and not self._document.has(tuple(parts)) and parts[-1] in short:
            parts.pop()
        return tuple(parts)


def load_story_file(path: str | PathLike[str], *, cast: Collection[str] = ()) -> StoryFile:
    """Reads a story file (YAML or JSON, UTF-8).

    :param cast: names of characters that frames may have besides those of the file: of a story that the file extends.
    :raises StoryFileError: with every problem in it, and the line of each.
    """
    name = str(path)
    try:
        document = parse(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise StoryFileError(name, [Problem(f"cannot be read: {error.strerror or error}")]) from error
    except UnicodeDecodeError as error:
        raise StoryFileError(name, [Problem("is not UTF-8 text")]) from error
    except YamlError as error:
        raise StoryFileError(name, [error.problem]) from error
    try:
        story = Story.model_validate(document.value, context={"cast": cast, "folder": Path(path).parent})
    except ValidationError as error:
        faults = [_problem(fault, document) for fault in error.errors(include_url=False)]
        raise StoryFileError(name, [*document.problems, *faults]) from error
    if document.problems:
        raise StoryFileError(name, document.problems)
    return StoryFile(name, story, document)


def field_path(loc: Loc) -> str:
    """Returns ``"frames[2].prompt"`` for ``("frames", 2, "prompt")``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _problem(fault: ErrorDetails, document: Document) -> Problem:
    loc = tuple(part for part in fault["loc"] if part != "[key]")
    mark = document.mark(loc)
    kind = fault["type"]
    if kind == "extra_forbidden":
        known = _model_at(loc[:-1]).model_fields
        return Problem(f'unknown key "{loc[-1]}"{did_you_mean(str(loc[-1]), known)}', field_path(loc), *mark)
    if kind == "missing":
        return Problem(f'the key "{loc[-1]}" is missing', field_path(loc), *mark)
    message = _EXPECTED.get(kind) or fault["msg"].removeprefix("Input ").removeprefix("String ")
    if kind == "string_type" and isinstance(fault["input"], bool | int | float):
        message += "; put it in quotes"
    return Problem(message, field_path(loc), *mark)


def _in_file(parts: list[str | int]) -> list[str | int]:
    """What the wire has in a message of its own stands with the character in a file."""
    match parts[2:]:
        case ["identity", "scale"]:
            return [*parts[:2], "identity_scale"]
        case ["identity", "blend", "character_id"]:
            return [*parts[:2], "blend", "id"]
        case ["identity", *rest]:
            return [*parts[:2], *rest]
        case ["character_id"]:
            return [*parts[:2], "id"]
        case _:
            return parts


def _model_at(loc: Loc) -> type[BaseModel]:
    if loc[2:3] == ("references",):
        return Reference
    if loc[2:3] == ("blend",):
        return Blend
    if loc[2:3] == ("pose",):
        return Pose
    if loc[-1:] == ("consistency",):
        return Consistency
    if loc[-1:] == ("rounds",):
        return Rounds
    if loc[-1:] == ("redenoising",):
        return Redenoising
    if loc[-1:] == ("freeu",):
        return FreeU
    sections: dict[str, type[BaseModel]] = {"characters": Character, "frames": Frame, "settings": Settings}
    return sections.get(str(loc[0]), Story) if loc else Story
