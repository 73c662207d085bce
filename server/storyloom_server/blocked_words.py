"""A check of prompts by a list of words. It is coarse: it knows spellings, not meanings."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storyloom_server.safety import ALLOWED, Verdict

# Cyrillic and Greek letters that look like Latin ones.
_LOOKALIKES = str.maketrans("авеѕіјкмнорстухԁԛԝαβεικνορτυχ", "abesijkmhopctyxdqwabeikvoptux")
# Scripts without spaces between words: each sign is a word, so that their words are found inside a text.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class BlockedWords:
    """Refuses texts with one of the words or phrases, as whole words; however they are cased, accented or spaced.

    Args:
        phrases: each one word or more.
    """

    name = "blocked-words"

    def __init__(self, phrases: Iterable[str]) -> None:
        self._phrases = {words for phrase in phrases if (words := _words(phrase))}
        self._lengths = sorted({len(words) for words in self._phrases})

    @classmethod
    def read(cls, path: Path) -> "BlockedWords":
        """From a UTF-8 file with one phrase a line; # begins a comment.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not UTF-8, or has no phrases.
        """
        lines = (line.partition("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
        check = cls(lines)
        if not check._phrases:
            raise ValueError("it has no words; write one word or phrase a line")
        return check

    def prompt(self, text: str) -> Verdict:
        """Refuses a text with a blocked phrase. Which one is not told: the list may be nobody else's business."""
        words = _words(text)
        found = any(
            words[at : at + length] in self._phrases
            for length in self._lengths
            for at in range(len(words) - length + 1)
        )
        return Verdict(refused=True, label="word") if found else ALLOWED

    def picture(self, rgb: NDArray[np.uint8]) -> Verdict:
        """Words say nothing about pictures."""
        return ALLOWED


def _words(text: str) -> tuple[str, ...]:
    """Words in one spelling: full-width, styled and accented letters, lookalikes and invisible signs made plain."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    visible = "".join(sign for sign in plain if unicodedata.category(sign) not in ("Mn", "Cf"))
    # Hangul is taken apart by NFKD.
    return tuple(_WORD.findall(unicodedata.normalize("NFC", visible).translate(_LOOKALIKES)))
