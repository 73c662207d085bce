"""Stories about people whom the built-in model has never seen, with a reference picture of each."""

from __future__ import annotations

from benchmarks.identity.cases import IdentityCase, identity_case, png
from benchmarks.stories.stories import BenchmarkStory
from storyloom import Character, Frame, Story
from storyloom_model.prompts import ComposedPrompt

HELD_OUT = "held-out"
"""What stands for these stories where others have a file."""


def held_out_stories(count: int, people: int, frames: int, *, described: bool) -> list[BenchmarkStory]:
    """The first `count` stories with so many people, as portraits and full-body pictures.

    Args:
        described: prompts say what the people look like; else "a woman" or "a man" and no more.

    Raises:
        ValueError: more frames than such a story has.
    """
    return [_story(identity_case(index, people, frames), described=described) for index in range(count)]


def _story(case: IdentityCase, *, described: bool) -> BenchmarkStory:
    prompts = case.described if described else case.generic
    texts = {name: _text(prompts[0], name) for name in case.names}
    name = f"{len(case.names)}-{case.index:03}"
    story = Story(
        title=f"{HELD_OUT} {name}",
        characters={known: Character(description=text) for known, text in texts.items()},
        frames=tuple(Frame(prompt=_written(prompt), characters=case.names) for prompt in prompts),
    )
    pictures = {known: png(picture.image) for known, picture in zip(case.names, case.references, strict=True)}
    return BenchmarkStory(name, story, (case.names,) * len(prompts), pictures, case.group)


def _text(prompt: ComposedPrompt, name: str) -> str:
    start, end = prompt.spans[name][0]
    return prompt.text[start:end]


def _written(prompt: ComposedPrompt) -> str:
    """The prompt with {name} for each description, from the back, so that places stay where they are."""
    text = prompt.text
    places = [(span, name) for name, spans in prompt.spans.items() for span in spans]
    for (start, end), name in sorted(places, reverse=True):
        text = f"{text[:start]}{{{name}}}{text[end:]}"
    return text
