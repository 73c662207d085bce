"""Similarities of pictures and faces, as pure functions of embeddings of length 1.

Each gives one value for each picture, None where a picture has nothing to compare. The mean of a story's values is,
where every picture has one, the mean over all pairs, which is how the papers define their figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
"""[n, d], rows of length 1."""

PerPicture = list[float | None]
"""A value for each picture of a story, in order."""


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None for none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def among(count: int, compare: Callable[[int, int], float | None]) -> PerPicture:
    """For each of `count` pictures the mean of its comparisons with the others."""
    pairs = {(a, b): compare(a, b) for a, b in combinations(range(count), 2)}
    return [mean(value for pair, value in pairs.items() if place in pair) for place in range(count)]


def cosines_among(embeddings: Vectors) -> PerPicture:
    """For each picture the mean cosine of its embedding with those of the others."""
    return among(len(embeddings), lambda a, b: float(embeddings[a] @ embeddings[b]))


def matched_cosine(ours: Vectors, theirs: Vectors, pairs: int) -> float | None:
    """Mean cosine of so many pairs of faces, matched one to one as they are most alike; None if there are fewer faces.

    Nobody says which face is whose. With several people the best match is a guess in favour of the method, the same
    for all methods; with one person there is nothing to guess.
    """
    if pairs < 1 or min(len(ours), len(theirs)) < pairs:
        return None
    cosines = np.asarray(ours @ theirs.T)
    chosen = combinations(range(len(ours)), pairs)
    matches = ((rows, columns) for rows in chosen for columns in permutations(range(len(theirs)), pairs))
    return max(float(np.mean(cosines[list(rows), list(columns)])) for rows, columns in matches)


def faces_among(faces: Sequence[Vectors], casts: Sequence[Sequence[str]]) -> PerPicture:
    """For each picture the mean cosine of its faces with those of the same people in the others.

    Args:
        faces: of each picture, those that were found.
        casts: who is in each picture. Two pictures are compared by as many faces as they have people in common.
    """
    shared = [frozenset(cast) for cast in casts]
    return among(len(faces), lambda a, b: matched_cosine(faces[a], faces[b], len(shared[a] & shared[b])))


def faces_to_references(
    faces: Sequence[Vectors], casts: Sequence[Sequence[str]], references: Mapping[str, Vectors]
) -> PerPicture:
    """For each picture the mean cosine of its faces with the references of those in it.

    Args:
        faces, casts: as of `faces_among`.
        references: the face [1, d] of each character that has a reference.
    """
    values: PerPicture = []
    for found, cast in zip(faces, casts, strict=True):
        known = [references[name] for name in cast if name in references]
        values.append(matched_cosine(found, np.concatenate(known), len(known)) if known else None)
    return values
