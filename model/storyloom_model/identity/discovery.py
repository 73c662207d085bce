"""Iterative Identity Discovery: the identity that most candidate pictures of a description agree on. numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storyloom_model.identity.features import Array, FeaturesError, ReferenceFeatures

ROUNDS = 3
KEEP = 0.6
COMPONENTS = 1
"""Right singular vectors: what all candidates share. The paper takes 10 of 64; of tens of candidates, several vectors
rebuild strangers as well as anybody, and the filter keeps them (docs/methods-identitystory.md has figures)."""
LEAST_KEPT = 9
"""A mean of fewer is a worse guess than one with some strangers in it. The paper ends with 13 of 64."""
LEAST_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the filter: the rows that were in it, and the mean squared error of each, in the same order."""

    rows: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Filtered:
    """What is left of some rows: their mean, their indexes in ascending order, and how it came to that."""

    mean: NDArray[np.float32]
    kept: tuple[int, ...]
    rounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Discovered:
    """An identity that was found. ``candidates`` are indexes of the pictures that showed enough to be compared, which
    the rows of ``filtered`` count; ``medoid`` is the index of the one that is most like the identity.
    """

    features: ReferenceFeatures
    filtered: Filtered
    candidates: tuple[int, ...]
    medoid: int


def svd_filter(
    rows: Array, *, rounds: int = ROUNDS, components: int = COMPONENTS, keep: float = KEEP, least: int = LEAST_KEPT
) -> Filtered:
    """Keeps the rows that agree with each other (IdentityStory's iterative SVD filter).

    In each round the rows that are left are rebuilt from their first right singular vectors, without centring, and the
    share of them that comes out best is kept (rounded down, at least one). A round of no more rows than vectors would
    rebuild all of them perfectly and tell nothing: it is left out, and with it those after it. So is a round that would
    leave fewer than ``least``.

    Args:
        rows: [n, D], finite, at least one.
        rounds: at most.
        components: right singular vectors.
        keep: share of the rows that each round keeps, in (0, 1].
        least: rows that are left at the end, where there are as many.

    Raises:
        ValueError: there are no rows, or not of numbers, or an argument is out of range.
    """
    values = np.asarray(rows, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"the filter takes finite rows [n, D], at least one; got shape {list(values.shape)}")
    if rounds < 0 or components < 1 or not 0 < keep <= 1:
        raise ValueError(f"{rounds} rounds, {components} components, share {keep}: use 0, 1 and more than 0 or above")
    left = np.arange(len(values))
    done: list[Round] = []
    for _ in range(rounds):
        count = max(int(keep * len(left) + 1e-9), 1)
        if len(left) <= components or count < least:
            break
        errors = _errors(values[left], components)
        done.append(Round(tuple(left.tolist()), tuple(errors.tolist())))
        best = np.argsort(errors, kind="stable")[:count]
        left = np.sort(left[best])
    return Filtered(values[left].mean(0).astype(np.float32), tuple(left.tolist()), tuple(done))


def discover(candidates: Sequence[ReferenceFeatures | None], *, rounds: int = ROUNDS) -> Discovered:
    """Finds the identity that candidate pictures share.

    They are compared by their faces where enough of them show one, else by their characters. What has no place in the
    picture (embeddings) is the mean of those that are kept; what has one (hidden states) is that of the kept candidate
    which is nearest to the mean, since a mean of pictures that are not aligned shows nothing.

    Args:
        candidates: features of each picture; None for one of no use.
        rounds: of the filter.

    Raises:
        FeaturesError: too few of them show a face or a character.
    """
    for name in ("face", "character_embedding"):
        shown = [index for index, one in enumerate(candidates) if one is not None and getattr(one, name) is not None]
        if len(shown) >= LEAST_CANDIDATES:
            return _discover(candidates, shown, name, rounds)
    raise FeaturesError(
        f"fewer than {LEAST_CANDIDATES} of {len(candidates)} candidates show a face or a character; describe the "
        "character more closely, or ask for more candidates"
    )


def _discover(
    candidates: Sequence[ReferenceFeatures | None], shown: Sequence[int], name: str, rounds: int
) -> Discovered:
    usable = [one for index in shown if (one := candidates[index]) is not None]
    rows = np.stack([np.asarray(getattr(one, name), np.float64) for one in usable])
    filtered = svd_filter(rows, rounds=rounds)
    kept = [usable[row] for row in filtered.kept]
    alike = rows[list(filtered.kept)] @ filtered.mean
    nearest = int(np.argmax(alike / np.maximum(np.linalg.norm(rows[list(filtered.kept)], axis=1), 1e-12)))
    face = _mean([one.face for one in kept])
    features = replace(
        kept[nearest],
        face=None if face is None else (face / max(float(np.linalg.norm(face)), 1e-12)).astype(np.float32),
        face_embedding=_mean([one.face_embedding for one in kept]),
        character_embedding=_mean([one.character_embedding for one in kept]),
    )
    return Discovered(features, filtered, tuple(shown), shown[filtered.kept[nearest]])


def _errors(rows: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """Of each row, when it is rebuilt from the first right singular vectors of all."""
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    basis = right[:components]
    errors: NDArray[np.float64] = np.square(rows - rows @ basis.T @ basis).mean(axis=1)
    return errors


def _mean(arrays: Sequence[Array | None]) -> NDArray[np.float32] | None:
    """Of those that there are."""
    present = [np.asarray(one, np.float64) for one in arrays if one is not None]
    return np.mean(present, axis=0).astype(np.float32) if present else None
