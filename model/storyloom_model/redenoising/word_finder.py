"""Finds characters in a picture by the word for each: a detector's boxes, a segmenter's masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storyloom_model.identity.class_words import word_for
from storyloom_model.identity.encoders.grounding import BoxSegmenter, FoundBoxes, WordDetector
from storyloom_model.manifest import FinderFolders

SAME = 0.7
"""Intersection over union from which on two boxes are of the same person."""


class Detector(Protocol):
    """Finds boxes by words; see ``WordDetector.find``."""

    def find(self, picture: NDArray[np.uint8], phrases: Sequence[str]) -> FoundBoxes: ...


class Segmenter(Protocol):
    """Finds masks by boxes; see ``BoxSegmenter.inside``."""

    def inside(self, picture: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.bool_]: ...


@dataclass(frozen=True, slots=True)
class WordFinder:
    """A ``CharacterFinder``. Boxes count whose best token has ``box_threshold`` and whose word has
    ``text_threshold``.
    """

    detector: Detector
    segmenter: Segmenter
    box_threshold: float = 0.3
    text_threshold: float = 0.25

    def __call__(self, picture: NDArray[np.uint8], descriptions: Sequence[str]) -> NDArray[np.bool_]:
        """Masks bool [K, H, W] of a picture uint8 [H, W, 3] RGB; all False for a character that is not there."""
        words = [word_for(description) for description in descriptions]
        asked = list(dict.fromkeys(words))
        found = self.detector.find(picture, asked)
        chosen = choose(found, [words.count(word) for word in asked], self.box_threshold, self.text_threshold)
        boxes = [box for of_word in chosen for box in of_word]
        masks = dict(zip(boxes, self.segmenter.inside(picture, found.boxes[boxes]), strict=True))
        left = {word: list(of_word) for word, of_word in zip(asked, chosen, strict=True)}
        result = np.zeros((len(words), *picture.shape[:2]), np.bool_)
        for place, word in enumerate(words):
            if left[word]:
                result[place] = masks[left[word].pop(0)]
        return result


def choose(found: FoundBoxes, wanted: Sequence[int], box_threshold: float, text_threshold: float) -> list[list[int]]:
    """The boxes of each phrase: as many as wanted of it, those with the highest scores; none twice, nor two of the same
    thing.

    Args:
        found: of W phrases.
        wanted: of each phrase, how many.
        box_threshold: least score of a box, of its best token.
        text_threshold: least score of the phrase's own tokens.

    Returns:
        Indexes of boxes, of each phrase from the highest score to the lowest.
    """
    counts = (found.scores > box_threshold)[:, None] & (found.phrases > text_threshold)
    boxes, phrases = np.nonzero(counts)
    order = np.argsort(-found.phrases[boxes, phrases], kind="stable")
    chosen: list[list[int]] = [[] for _ in wanted]
    taken: list[int] = []
    for box, phrase in zip(boxes[order].tolist(), phrases[order].tolist(), strict=True):
        seen = any(overlap(found.boxes[box], found.boxes[other]) > SAME for other in taken)
        if len(chosen[phrase]) < wanted[phrase] and not seen:
            chosen[phrase].append(box)
            taken.append(box)
    return chosen


def overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes: left, top, right, bottom."""
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    if (inner <= 0).any():
        return 0.0
    common = float(inner.prod())
    return common / (float((one[2:] - one[:2]).prod()) + float((other[2:] - other[:2]).prod()) - common)


def load_word_finder(package: Path, folders: FinderFolders, device: str) -> WordFinder:
    """Loads what a manifest names.

    Args:
        package: its folder.
        folders: inside the package.
        device: where both run.

    Raises:
        EncodersError: a folder is not what it should be.
    """
    detector = WordDetector(package / folders.detector, device)
    segmenter = BoxSegmenter(package / folders.masks, device)
    return WordFinder(detector, segmenter, folders.box_threshold, folders.text_threshold)
