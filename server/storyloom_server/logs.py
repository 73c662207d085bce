"""Structured log lines on standard error, as text or as one JSON object a line.

Fields travel with the record: ``log.info("story accepted", extra=fields(story_id=story_id))``. Prompts and images are
never logged.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_FIELDS = "storyloom_fields"


def fields(**values: Any) -> dict[str, Any]:
    """Makes the ``extra`` argument of a logging call from named values."""
    return {_FIELDS: values}


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {name}={value}" for name, value in getattr(record, _FIELDS, {}).items())
        line = f"{_timestamp(record)} {record.levelname.lower():<7} {record.name}: {record.getMessage()}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up(level: str, style: str) -> None:
    """Sends every log record of this process to standard error.

    Args:
        level: debug, info, warning or error.
        style: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
