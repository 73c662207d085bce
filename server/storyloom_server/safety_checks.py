"""Makes the safety checks that the options name."""

import importlib
from collections.abc import Callable
from typing import Any, cast

from storyloom_server.blocked_words import BlockedWords
from storyloom_server.options import SafetyGroup
from storyloom_server.safety import Safety, SafetyCheck
from storyloom_server.setup_error import SetupError


class SafetySetupError(SetupError):
    """A check cannot be set up. The message says which option to change."""


def load_safety(options: SafetyGroup) -> Safety:
    """The server's safety.

    Raises:
        SafetySetupError: a check cannot be made.
    """
    checks: list[SafetyCheck] = []
    if options.safety == "off":
        return Safety("off", checks)
    if options.blocked_words is not None:
        path = options.blocked_words
        checks.append(_made("--blocked-words", str(path), lambda: BlockedWords.read(path)))
    if options.picture_classifier is not None:
        checks.append(_made("--picture-classifier", str(options.picture_classifier), lambda: _classifier(options)))
    if options.safety_check is not None:
        name = options.safety_check
        checks.append(_made("--safety-check", name, lambda: _by_name(name)))
    return Safety(options.safety, checks)


def _made(option: str, value: str, make: Callable[[], SafetyCheck]) -> SafetyCheck:
    try:
        return make()
    except Exception as error:
        raise SafetySetupError(f"{option} {value} cannot be used: {error}") from error


def _classifier(options: SafetyGroup) -> SafetyCheck:
    from storyloom_server.picture_classifier import TransformersImageCheck

    assert options.picture_classifier is not None  # noqa: S101 - the caller looked.
    labels = [label.strip() for label in options.refused_labels.split(",") if label.strip()]
    return TransformersImageCheck(options.picture_classifier, labels, options.refused_score)


def _by_name(name: str) -> SafetyCheck:
    module, _, attribute = name.partition(":")
    check: Any = getattr(importlib.import_module(module), attribute)()
    missing = [part for part in ("name", "prompt", "picture") if not hasattr(check, part)]
    if missing:
        raise TypeError(f"it has no {', '.join(missing)}; see storyloom_server.safety.SafetyCheck")
    return cast(SafetyCheck, check)
