"""Stories in the form of the ConsiStory-Human benchmark (IdentityStory, arXiv 2512.23519; `bench/` of its repository).

A file is one story:

    {"character": "a description, or a list of them", "token": "the word that stands for each in the prompts",
     "prompts": ["a prompt a picture", ...], "style": "how prompts begin", "settings": [...], "settings_types": [...]}

Prompts say the description of a character, or its token alone. In the story that is made of it either is the
character's place, so that a token is spelt out there. `settings` are parts of the prompts again, and are left aside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from benchmarks.stories.stories import BenchmarkStory
from storyloom import Character, Frame, Story

_Span = tuple[int, int, str]
"""First character, the one after the last, and whose name takes their place."""
_ARTICLE = r"(?:(?:a|an|the)\s+)"
_SUFFIXES = (".webp", ".jpeg", ".jpg", ".png")


class BenchmarkFileError(ValueError):
    """A benchmark cannot be read. The text is one line for each problem."""


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Texts = Annotated[list[_Text], Field(min_length=1)]
_OneOrMore = Annotated[_Texts, BeforeValidator(_listed)]


class _File(BaseModel):
    """Keys that are not named here are left aside."""

    prompts: _Texts
    character: _OneOrMore
    token: _OneOrMore
    style: str = ""

    @model_validator(mode="after")
    def _check_cast(self) -> Self:
        if len(self.character) != len(self.token):
            raise ValueError(
                f"{len(self.character)} descriptions in character and {len(self.token)} words in token; "
                "each character needs both"
            )
        return self


def read_benchmark(path: Path) -> list[BenchmarkStory]:
    """The stories of a file, or of all `.json` files in a folder and those below it, in the order of their names.

    Raises:
        BenchmarkFileError: there is none, or some of them are not of the form; every problem is told.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise BenchmarkFileError(f"{path} holds no .json files; give a story file or a folder of them")
    problems: list[str] = []
    stories = []
    for file in files:
        parts = file.relative_to(path).parts if path.is_dir() else (file.name,)
        try:
            stories.append(_read(file, "-".join(parts).removesuffix(".json")))
        except BenchmarkFileError as error:
            problems.append(str(error))
    if problems:
        raise BenchmarkFileError("\n".join(problems))
    names = [story.name for story in stories]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BenchmarkFileError(f"{path}: several stories would be called {', '.join(doubled)}; rename their files")
    return stories


def find_references(folder: Path, stories: Sequence[BenchmarkStory]) -> list[BenchmarkStory]:
    """Gives stories the reference pictures of a folder: `STORY/CHARACTER.png` (or .jpg, .jpeg, .webp).

    Raises:
        BenchmarkFileError: no character of any story has one.
    """
    found = [story.with_references(_references_of(folder / story.name, story)) for story in stories]
    if not any(story.references for story in found):
        name = next(iter(stories[0].story.characters))
        raise BenchmarkFileError(
            f"{folder} has no reference of any character; call them like {folder / stories[0].name / name}.png"
        )
    return found


def _references_of(folder: Path, story: BenchmarkStory) -> dict[str, bytes]:
    candidates = ((name, folder / f"{name}{suffix}") for name in story.story.characters for suffix in _SUFFIXES)
    return {name: file.read_bytes() for name, file in candidates if file.is_file()}


def _read(file: Path, name: str) -> BenchmarkStory:
    try:
        content = _File.model_validate(json.loads(file.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise BenchmarkFileError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        faults = (
            f"{file}: {'.'.join(map(str, fault['loc'])) or 'story'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_url=False)
        )
        raise BenchmarkFileError("\n".join(faults)) from error
    except ValueError as error:
        raise BenchmarkFileError(f"{file}: is not JSON: {error}") from error
    return _story(name, content)


def _story(name: str, content: _File) -> BenchmarkStory:
    names = _names(content.token)
    cast = dict(zip(names, zip(content.character, content.token, strict=True), strict=True))
    style = content.style.strip()
    # Style is how every frame's prompt begins; where they do not begin with it, it is not meant for them.
    shared = bool(style) and all(prompt.startswith(f"{style} ") for prompt in content.prompts)
    frames, casts = [], []
    for prompt in content.prompts:
        text = prompt.removeprefix(style).strip() if shared else prompt
        spans = _mentions(text, cast)
        # A prompt that names nobody is about all of them.
        seen = tuple(known for known in names if any(known == whose for _, _, whose in spans)) or names
        frames.append(Frame(prompt=_written(text, spans), characters=seen))
        casts.append(seen)
    story = Story(
        title=name[:200],
        style=style if shared else "",
        characters={known: Character(description=description) for known, (description, _) in cast.items()},
        frames=tuple(frames),
    )
    return BenchmarkStory(name, story, tuple(casts))


def _names(tokens: Sequence[str]) -> tuple[str, ...]:
    """A character's name is its token, as far as names go, with a number where two share it."""
    names: list[str] = []
    for place, token in enumerate(tokens):
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", token).strip("-")[:24]
        known = plain if plain[:1].isalpha() else f"character-{plain}".rstrip("-")
        names.append(f"{known}-{place + 1}" if known in names else known)
    return tuple(names)


def _mentions(text: str, cast: dict[str, tuple[str, str]]) -> list[_Span]:
    """Where a prompt speaks of whom: by descriptions, the longest first, and by the token of those that are left."""
    spans: list[_Span] = []
    for name, (description, _) in sorted(cast.items(), key=lambda item: -len(item[1][0])):
        pattern = r"\s+".join(map(re.escape, description.split()))
        spans += [found for found in _found(rf"\b{pattern}(?!\w)", text, name) if _is_free(found, spans)]
    for name, (description, token) in cast.items():
        if not any(name == whose for _, _, whose in spans):
            article = f"{_ARTICLE}?" if re.match(_ARTICLE, description, re.IGNORECASE) else ""
            places = _found(rf"\b{article}{re.escape(token)}(?!\w)", text, name)
            spans += [found for found in places if _is_free(found, spans)][:1]
    return sorted(spans)


def _found(pattern: str, text: str, name: str) -> list[_Span]:
    return [(*match.span(), name) for match in re.finditer(pattern, text, re.IGNORECASE)]


def _is_free(span: _Span, taken: Sequence[_Span]) -> bool:
    return all(span[1] <= start or end <= span[0] for start, end, _ in taken)


def _written(text: str, spans: Sequence[_Span]) -> str:
    """The prompt as a story has it: {name} at each span, and braces doubled elsewhere."""
    parts, position = [], 0
    for start, end, name in spans:
        parts += [_escaped(text[position:start]), f"{{{name}}}"]
        position = end
    return "".join([*parts, _escaped(text[position:])])


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
