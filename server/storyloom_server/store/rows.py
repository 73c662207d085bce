"""Rows as records."""

from dataclasses import fields
from typing import Any

from storyloom_server.store import tables
from storyloom_server.store.records import Character, Story, StoryState

# All but the request and its digest.
STORY_COLUMNS = tuple(tables.story.c[field.name] for field in fields(Story))
CHARACTER_COLUMNS = tuple(tables.character.c[field.name] for field in fields(Character))


def make_story(row: Any) -> Story:
    """The story in a row with ``STORY_COLUMNS``."""
    values = {column.name: getattr(row, column.name) for column in STORY_COLUMNS}
    return Story(**values | {"state": StoryState(row.state)})


def make_character(row: Any) -> Character:
    """The character in a row with ``CHARACTER_COLUMNS``."""
    return Character(**{column.name: getattr(row, column.name) for column in CHARACTER_COLUMNS})
