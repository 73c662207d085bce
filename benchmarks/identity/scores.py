"""The figures of one story, as pure functions of embeddings, readings and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from benchmarks.identity.cases import IdentityCase
from benchmarks.quality.attributes import VISIBLE, Reading, read_as
from benchmarks.quality.metrics import background_distance

Embedding = npt.NDArray[np.float32]
"""[512], of length 1."""

FACE = ("age", "gender", "skin", "hair style", "hair colour", "glasses", "facial hair")
CLOTHES = ("top", "top colour", "top pattern", "bottom", "bottom colour", "hat")
SETTING = ("scene", "time")


@dataclass(frozen=True)
class IdentityScore:
    """The figures of one story; None where it has nothing to compare.

    ``to_reference``: cosine of the judge between a character's reference and its faces in the frames. ``to_other``: the
    same with the other character's reference (two characters), or another case's (one). ``apart``: the one less the
    other. ``among``: between a character's faces of two frames. ``found``: the part of the faces that should be there
    and were found. ``face_attributes``, ``clothes_attributes``: attributes read as the person of the reference has
    them; ``attributes``: each of them. ``text``: scene and time read as the prompt says. ``background``: see
    ``quality.metrics``. ``poses``: of the pairs of frames whose prompts ask for two poses, the part that is read as
    two.
    """

    to_reference: float | None
    to_other: float | None
    apart: float | None
    among: float | None
    found: float
    face_attributes: float | None
    clothes_attributes: float | None
    text: float | None
    background: float | None
    poses: float | None
    attributes: Mapping[str, float]


def score(
    case: IdentityCase,
    references: Sequence[Embedding],
    strangers: Sequence[Embedding],
    faces: Sequence[Sequence[Embedding]],
    readings: Sequence[Reading],
    pictures: npt.NDArray[np.uint8],
) -> IdentityScore:
    """Scores one story.

    Args:
        case: the story.
        references: the judge's embedding of each character's reference.
        strangers: for each character, that of somebody else's.
        faces: for each frame, the faces that were found in it, left to right.
        readings: what the reader names in each frame; it reads pictures of one person.
        pictures: [frames, h, w, 3].
    """
    people = len(case.references)
    # People stand left to right in the order of the cast. In a frame with too few or too many faces nobody knows who
    # is who; it counts as not found.
    seen = [list(found) if len(found) == people else None for found in faces]
    by_character = [[found[place] for found in seen if found is not None] for place in range(people)]
    pairs = [(reference, face) for reference, own in zip(references, by_character, strict=True) for face in own]
    others = [(stranger, face) for stranger, own in zip(strangers, by_character, strict=True) for face in own]
    among = [pair for own in by_character for pair in combinations(own, 2)]
    alone = people == 1
    own, other = _cosine(pairs), _cosine(others)
    return IdentityScore(
        to_reference=own,
        to_other=other,
        apart=None if own is None or other is None else own - other,
        among=_cosine(among),
        found=sum(found is not None for found in seen) / len(seen),
        face_attributes=_agreement(case, readings, FACE) if alone else None,
        clothes_attributes=_agreement(case, readings, CLOTHES) if alone else None,
        text=_text(case, readings),
        background=background_distance(pictures),
        poses=_poses(case, readings) if alone else None,
        attributes=_attributes(case, readings) if alone else {},
    )


def _cosine(pairs: Sequence[tuple[Embedding, Embedding]]) -> float | None:
    return float(np.mean([a @ b for a, b in pairs])) if pairs else None


def _agreement(case: IdentityCase, readings: Sequence[Reading], names: Sequence[str]) -> float | None:
    truth = read_as(case.group.cast[0])
    answers = [
        reading[name] == truth[name]
        for reading, record in zip(readings, case.group.frames, strict=True)
        for name in names
        if name in VISIBLE[record.framing]
    ]
    return sum(answers) / len(answers) if answers else None


def _attributes(case: IdentityCase, readings: Sequence[Reading]) -> dict[str, float]:
    found = {name: _agreement(case, readings, [name]) for name in (*FACE, *CLOTHES)}
    return {name: value for name, value in found.items() if value is not None}


def _text(case: IdentityCase, readings: Sequence[Reading]) -> float | None:
    wanted = [{"scene": record.scene, "time": record.time} for record in case.group.frames]
    answers = [reading[name] == said[name] for reading, said in zip(readings, wanted, strict=True) for name in SETTING]
    return sum(answers) / len(answers) if answers else None


def _poses(case: IdentityCase, readings: Sequence[Reading]) -> float | None:
    frames = [(record.poses[0], read["pose"]) for record, read in zip(case.group.frames, readings, strict=True)]
    told = [seen != also for (asked, seen), (other, also) in combinations(frames, 2) if asked != other]
    return sum(told) / len(told) if told else None
