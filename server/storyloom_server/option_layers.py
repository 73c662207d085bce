"""Gathers the options from the command line, the environment and a file, in this order, and remembers which from where.

Every mistake in any of them is told at once, with the place where it was made. All values are strings until the types
of ``ServerOptions`` read them, so that a value means the same wherever it stands.
"""

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from storyloom_server.options import GROUPS, ServerOptions

PREFIX = "STORYLOOM_"
_DESCRIPTION = f"""\
Serve stories over gRPC.

Each option can also be set in the environment, as {PREFIX}MAX_ROWS for --max-rows, or in the file of --config, as
max_rows: 48. The command line goes before the environment, and the environment before the file."""
# The password in a URL.
_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/@\s]+@")


class OptionsError(Exception):
    """The options cannot be used. ``problems``: a line for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class _Given:
    """A value that somebody wrote. ``origin`` is how one finds it: an option, a variable, a line of a file."""

    value: str | list[str]
    origin: str


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What is in force.

    ``origins`` tells where each option that somebody gave came from, ``warnings`` are lines for people, and ``show``
    asks for the options to be printed rather than used.
    """

    options: ServerOptions
    origins: Mapping[str, str]
    warnings: Sequence[str]
    show: bool

    def printed(self) -> str:
        """All options as a file for --config, each with its origin. Passwords in URLs are masked."""
        lines = []
        for group in GROUPS:
            lines += ["", f"# {group.__doc__}"]
            for name in group.model_fields:
                value = _for_yaml(getattr(self.options, name))
                lines.append(f"{name}: {value}  # {self.origins.get(name, 'default')}")
        return "\n".join(lines[1:])


def read_options(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> ReadOptions:
    """Reads the options of a server. ``--help`` prints them and leaves by ``SystemExit``.

    Raises:
        OptionsError: something cannot be used; all mistakes are in it.
    """
    problems: list[str] = []
    from_command_line, config, show = _command_line(arguments, problems)
    from_environment, warnings = _environment(environment)
    config_file = config or environment.get(f"{PREFIX}CONFIG")
    from_file = _file(Path(config_file), problems) if config_file else {}
    given = {**from_file, **from_environment, **from_command_line}
    options = _checked(given, problems)
    if options is None or problems:
        raise OptionsError(problems)
    return ReadOptions(options, {name: value.origin for name, value in given.items()}, warnings, show)


def _checked(given: Mapping[str, _Given], problems: list[str]) -> ServerOptions | None:
    try:
        options = ServerOptions.model_validate({name: each.value for name, each in given.items()})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0])
            problems.append(f"{given[name].origin}: {detail['msg'].removeprefix('Value error, ')}")
        return None
    for name, message in options.conflicts():
        origin = given[name].origin if name in given else _flag(name)
        problems.append(f"{origin}: {message}")
    return options


# Command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionsError([f"{message}; see --help"])


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)


def _command_line(arguments: Sequence[str], problems: list[str]) -> tuple[dict[str, _Given], str | None, bool]:
    """The options, the file of --config, and whether --print-config was there."""
    parsed, unknown = _parser().parse_known_args(list(arguments))
    problems += [f"{argument}: there is no such option; see --help" for argument in unknown]
    values = vars(parsed)
    config, show = values.pop("config", None), values.pop("print_config", False)
    given = {
        name: _Given(value if isinstance(value, list) else str(value), _flag(name)) for name, value in values.items()
    }
    return given, config, show


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="storyloom serve",
        usage="%(prog)s [OPTION]...",
        description=_DESCRIPTION,
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    general = parser.add_argument_group("General")
    general.add_argument("--help", "-h", action="help", help="Show this text and stop.")
    general.add_argument("--config", metavar="FILE", help="Options as YAML, one `name: value` a line.")
    general.add_argument(
        "--print-config", action="store_true", help="Show the options in force and where each comes from, and stop."
    )
    for group in GROUPS:
        section = parser.add_argument_group(group.__doc__)
        for name, field in group.model_fields.items():
            extra: Any = field.json_schema_extra
            kind: dict[str, Any] = {"metavar": extra["metavar"]}
            if field.annotation is bool:
                kind = {"action": argparse.BooleanOptionalAction}
            elif isinstance(field.default, list):
                kind["action"] = "append"
            default = extra["shown"] or _for_help(field.default)
            text = f"{field.description} [{default}]".replace("%", "%%")
            section.add_argument(_flag(name), dest=name, help=text, **kind)
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _for_help(default: Any) -> str:
    match default:
        case None:
            return "none"
        case bool():
            return "on" if default else "off"
        case list():
            return " ".join(map(str, default))
        case _:
            return str(default)


# Environment


def _environment(environment: Mapping[str, str]) -> tuple[dict[str, _Given], list[str]]:
    """The options, and warnings for variables that look like mistyped ones."""
    variables = {f"{PREFIX}{name.upper()}": name for name in ServerOptions.model_fields}
    given = {
        name: _Given(environment[variable], variable)
        for variable, name in variables.items()
        if environment.get(variable) and not _of_kubernetes(environment[variable])
    }
    strange = [name for name in environment if name.startswith(PREFIX) and name not in variables]
    near = ((name, difflib.get_close_matches(name, variables, n=1, cutoff=0.9)) for name in strange)
    return given, [f"{name} is no option; did you mean {match[0]}?" for name, match in near if match]


def _of_kubernetes(value: str) -> bool:
    """A service that is named storyloom gives every pod beside it STORYLOOM_PORT=tcp://ADDRESS:PORT."""
    return value.startswith("tcp://")


# File


def _file(path: Path, problems: list[str]) -> dict[str, _Given]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        problems.append(f"--config: cannot read {path} ({error.strerror}); name a file with options")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is not YAML ({_on_one_line(error)}); write one `name: value` a line")
        return {}
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        problems.append(f"{path}: holds no options; write one `name: value` a line")
        return {}
    return _entries(path, root, problems)


def _entries(path: Path, root: yaml.MappingNode, problems: list[str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for key, node in root.value:
        name = str(key.value).replace("-", "_")
        origin = f"{path}:{key.start_mark.line + 1}: {name}"
        value = _value(node)
        if name not in ServerOptions.model_fields:
            problems.append(f"{origin}: there is no such option{_suggestion(name)}")
        elif name in given:
            problems.append(f"{origin}: is set twice; remove one")
        elif value is None:
            problems.append(f"{origin}: takes one value or a list of them, not more structure")
        elif value not in ("", "null", "~"):
            given[name] = _Given(value, origin)
    return given


def _value(node: yaml.Node) -> str | list[str] | None:
    """What is written, as it is written; None for what options cannot be."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(each, yaml.ScalarNode) for each in node.value):
        return [str(each.value) for each in node.value]
    return None


def _suggestion(name: str, known: Iterable[str] = ServerOptions.model_fields) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; see --help"


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _for_yaml(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
        case list():
            return f"[{', '.join(_for_yaml(each) for each in value)}]"
        case _:
            masked = _PASSWORD.sub(r"\1***@", str(value))
            return yaml.safe_dump(masked, default_style='"', width=10_000).strip()
