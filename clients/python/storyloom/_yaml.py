"""YAML that remembers where each value was written, so that a fault can be shown in its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from storyloom._errors import Problem


class Mark(NamedTuple):
    """A place in a file; both numbers start at 1."""

    line: int
    column: int


class YamlError(Exception):
    """The text is not YAML."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does: for YAML 1.1, ``on``, ``no``, ``12:30`` and dates are not text."""


_DIGITS = "0123456789"
_SCALARS = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)$", "-+" + _DIGITS),
    "float": (
        r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan)$",
        "-+." + _DIGITS,
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern), list(_first))


@dataclass(frozen=True)
class Document:
    """A parsed file.

    :ivar value: plain dicts, lists and scalars.
    :ivar problems: keys written twice.
    """

    value: Any
    problems: tuple[Problem, ...]
    _root: yaml.Node

    def mark(self, loc: tuple[str | int, ...]) -> Mark:
        """Returns where the value at `loc` is written (its key, if it has one), or else its closest known parent."""
        mark, _ = self._find(loc)
        return mark

    def has(self, loc: tuple[str | int, ...]) -> bool:
        """Tells whether the file has a value at `loc`."""
        return self._find(loc)[1]

    def _find(self, loc: tuple[str | int, ...]) -> tuple[Mark, bool]:
        node, mark = self._root, _mark(self._root)
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                entry = next((pair for pair in node.value if pair[0].value == str(part)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                entry = (node.value[part], node.value[part])
            else:
                entry = None
            if entry is None:
                return mark, False
            mark, node = _mark(entry[0]), entry[1]
        return mark, True


def parse(text: str) -> Document:
    """Parses one YAML document.

    :raises YamlError: when the text is not YAML, or holds nothing.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise YamlError(Problem("the file is empty"))
        # Before construction, which folds merge keys into the nodes.
        problems = tuple(_repeated_keys(root, set()))
        return Document(loader.construct_document(root), problems, root)
    except yaml.MarkedYAMLError as error:
        raise YamlError(_explain(error, text)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(Problem(f"the character U+{error.character:04X} is not allowed", "", line, 1)) from error
    except RecursionError as error:
        raise YamlError(Problem("the file is nested too deeply")) from error


def _mark(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


def _repeated_keys(node: yaml.Node, seen: set[int]) -> Iterator[Problem]:
    if id(node) in seen:  # an alias, which may even lead back to itself
        return
    seen.add(id(node))
    first: dict[str, Mark] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                line = first[key.value].line
                yield Problem(f'"{key.value}" is written twice; the first is in line {line}', "", *_mark(key))
            elif isinstance(key, yaml.ScalarNode):
                first[key.value] = _mark(key)
            yield from _repeated_keys(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, seen)


def _explain(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    written = lines[line] if line < len(lines) else ""
    message = error.problem or str(error)
    if "'\\t'" in message:
        message = "a tab stands here; indent with spaces"
    elif re.match(r"\s*(-\s+|\S+:\s+)+\{[^}]*\}\s*\S", written):
        message = 'a text that starts with { must be in quotes, like "{mia} is walking"'
    elif "mapping values are not allowed" in message:
        message = "a text with a colon and a space in it must be in quotes"
    return Problem(message, "", line + 1, column + 1)
