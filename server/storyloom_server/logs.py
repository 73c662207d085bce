"""Structured log lines on standard error, as text or as one JSON object a line.

Fields travel with the record: ``log.info("story accepted", extra=fields(story_id=story_id))``. Images are never logged.
What clients wrote is logged as ``Prompts``, if at all: its text stays hidden unless ``--log-prompts`` shows it.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_FIELDS = "storyloom_fields"
_SHOWN_FRAMES = 8


class Prompts(tuple[str, ...]):
    """What a client wrote. As a log field it tells how many texts there are, and shows them only if the log may."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} hidden>"

    __str__ = __repr__


def fields(**values: Any) -> dict[str, Any]:
    """Makes the ``extra`` argument of a logging call from named values."""
    return {_FIELDS: values}


def failure(error: BaseException) -> dict[str, Any]:
    """Fields for an exception that a client's story caused: its type and its place in the code.

    What it says may quote a prompt, and is shown only where prompts are.
    """
    frames = traceback.extract_tb(error.__traceback__)[-_SHOWN_FRAMES:]
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return {"error": type(error).__name__, "said": Prompts((str(error),)), "at": place}


class _Formatter(logging.Formatter):
    def __init__(self, *, show_prompts: bool) -> None:
        super().__init__()
        self._show_prompts = show_prompts

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return {name: self._shown(value) for name, value in getattr(record, _FIELDS, {}).items()}

    def _shown(self, value: Any) -> Any:
        if isinstance(value, Prompts):
            return list(value) if self._show_prompts else str(value)
        return value


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {name}={value}" for name, value in self._fields(record).items())
        line = f"{_timestamp(record)} {record.levelname.lower():<7} {record.name}: {record.getMessage()}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up(level: str, style: str, *, prompts: bool = False) -> None:
    """Sends every log record of this process to standard error.

    Args:
        level: debug, info, warning or error.
        style: ``text`` or ``json``.
        prompts: whether what clients wrote may be in there.
    """
    kind = _JsonFormatter if style == "json" else _TextFormatter
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(kind(show_prompts=prompts))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
