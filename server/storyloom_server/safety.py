"""A hook for checks of prompts and pictures: off, flag or block.

A check is any object with ``name``, ``prompt`` and ``picture``; ``safety_checks`` makes those that the options name.
When blocking, a check that fails blocks too. Logs tell which check found what, never the text.
"""

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storyloom_server import errors
from storyloom_server.logs import fields
from storyloom_server.violations import Violation

log = logging.getLogger("storyloom.safety")

Mode: TypeAlias = Literal["off", "flag", "block"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check thinks: whether it refuses, as what (a short name of its own, no text of the client's), how sure."""

    refused: bool
    label: str = ""
    score: float = 1.0


ALLOWED = Verdict(refused=False, score=0.0)


class SafetyCheck(Protocol):
    """Looks at prompts and at pictures. Must be callable from several threads."""

    @property
    def name(self) -> str:
        """For logs and messages."""

    def prompt(self, text: str) -> Verdict:
        """Judges a text of the client."""

    def picture(self, rgb: NDArray[np.uint8]) -> Verdict:
        """Judges a picture, uint8 [height, width, 3]."""


Flags: TypeAlias = tuple[str, ...]
"""``check:label`` of each check that refuses something."""


@dataclass(frozen=True, slots=True)
class SafetyDecision:
    """What to do with a picture. ``flags`` are there also where it is let through."""

    allowed: bool
    flags: Flags = ()


class Safety:
    """Runs every check and decides by the mode. Checks may be slow: call it off the event loop."""

    def __init__(self, mode: Mode, checks: Sequence[SafetyCheck]) -> None:
        self._mode = mode
        self._checks = tuple(checks) if mode != "off" else ()

    @property
    def on(self) -> bool:
        """False when there is nothing to call."""
        return bool(self._checks)

    def check_prompts(self, texts: Mapping[str, str], story_id: str) -> Mapping[str, Flags]:
        """Judges the texts of a story, by their field paths.

        Returns:
            What is let through in spite of it, for each of the paths.

        Raises:
            StoryError: in mode block, SAFETY_BLOCKED with every refused field, or SAFETY_CHECK_FAILED.
        """
        found = {path: self._labels("prompt", text, path, story_id) for path, text in texts.items()}
        violations = [
            Violation(path, f"is refused here ({', '.join(flags)}); write something else")
            for path, flags in found.items()
            if flags
        ]
        if violations and self._mode == "block":
            raise errors.safety_blocked(violations)
        return found

    def check_picture(self, rgb: NDArray[np.uint8], path: str, story_id: str) -> SafetyDecision:
        """Judges a picture.

        Args:
            rgb: uint8 [height, width, 3].
            path: which one, such as ``story.frames[2]``; for the log.
            story_id: for the log.

        Returns:
            The decision; in mode block, a picture with flags is not allowed.

        Raises:
            StoryError: in mode block, SAFETY_CHECK_FAILED.
        """
        flags = self._labels("picture", rgb, path, story_id)
        return SafetyDecision(allowed=not flags or self._mode != "block", flags=flags)

    def _labels(self, kind: Literal["prompt", "picture"], content: Any, path: str, story_id: str) -> Flags:
        """The flags of the content."""
        labels = []
        for check in self._checks:
            verdict = self._verdict(check, kind, content, path, story_id)
            if verdict.refused:
                log.warning(
                    "safety check refused",
                    extra=fields(
                        story_id=story_id,
                        what=path,
                        check=check.name,
                        label=verdict.label,
                        score=round(verdict.score, 3),
                        mode=self._mode,
                    ),
                )
                labels.append(f"{check.name}:{verdict.label}" if verdict.label else check.name)
        return tuple(labels)

    def _verdict(self, check: SafetyCheck, kind: str, content: Any, path: str, story_id: str) -> Verdict:
        try:
            verdict: Verdict = check.prompt(content) if kind == "prompt" else check.picture(content)
            return verdict
        except Exception as error:  # noqa: BLE001 - checks are anybody's code.
            # Its message and its frames may hold the prompt; its place in the code does not.
            log.error(
                "safety check failed",
                extra=fields(
                    story_id=story_id, what=path, check=check.name, error=type(error).__name__, at=_place(error)
                ),
            )
            if self._mode == "block":
                # Not chained, for the same reason.
                raise errors.safety_check_failed(check.name) from None
            return ALLOWED


def _place(error: BaseException) -> str:
    """File and line where an error was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
