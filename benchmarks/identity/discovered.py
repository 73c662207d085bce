"""The figures of Iterative Identity Discovery, as pure functions of embeddings.

Who describes a person in a few words leaves most of it open, and candidates of one description are many people. Does
the mean of those that the filter keeps say better than the mean of all what a candidate will be that neither has seen?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from random import Random
from typing import Any

import numpy as np

from benchmarks.quality.metrics import Interval
from benchmarks.stories.similarity import Vectors, cosines_among, mean
from storyloom_model.identity.discovery import ROUNDS, svd_filter
from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.people import Person

FOLDS = 5
FILTERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "ours": lambda count: {},
    "the paper's": lambda count: {"components": max(1, round(10 * count / 64)), "least": 1},
}
"""What `svd_filter` is told for so many rows. The paper's ten vectors for 64 are taken in proportion."""
STRANGERS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Shares of candidates that show somebody else."""


@dataclass(frozen=True)
class HeldOut:
    """A candidate that no mean has seen: 1 - cosine to the mean of those that were kept, and to that of all.

    ``typical``: the filter's first round keeps it, applied to the held-out candidates alone.
    """

    filtered: float
    plain: float
    typical: bool

    @property
    def nearer(self) -> float:
        """By how much the filtered mean is nearer than the plain one."""
        return self.plain - self.filtered


@dataclass(frozen=True)
class Mixed:
    """Candidates among which some are strangers.

    Attributes:
        filter: of `FILTERS`.
        share: of the strangers among those that were filtered.
        kept: their share of what the filter left.
        held_out: for each embedding, of each person: candidates of that person, held out.
    """

    filter: str
    share: float
    kept: float
    held_out: dict[str, list[list[HeldOut]]]


@dataclass(frozen=True)
class Agreement:
    """Of the faces of one story: cosine over all pairs of frames, and to the filtered mean; None for too few faces.

    ``found`` is the part of the frames with a face.
    """

    among: float | None
    to_identity: float | None
    found: float


def terse(person: Person) -> str:
    """What is said of a person: age, gender and hair, as in "a middle-aged woman with short, curly brown hair"."""
    noun = words.NOUN[person.age, person.gender][0]
    age = "" if person.age in ("child", "young") else f"{words.AGE[person.age][0]} "
    hair = words.HAIR_STYLE[person.hair_style][0].format(colour=person.hair_colour)
    said = f"{age}{noun} with {hair}"
    return f"an {said}" if said[0] in "aeiou" else f"a {said}"


def compare(seen: Vectors, kept: Sequence[int], held_out: Vectors) -> list[HeldOut]:
    """Held-out candidates against the mean of the kept ones and that of all.

    Args:
        seen: candidates that were compared, rows of length 1.
        kept: those that the filter left, as indexes of ``seen``.
        held_out: others of the same description.
    """
    filtered, plain = _direction(seen[list(kept)].mean(0)), _direction(seen.mean(0))
    first = svd_filter(held_out, rounds=1, least=1) if len(held_out) else None
    typical = set(() if first is None else first.kept)
    return [
        HeldOut(float(1 - row @ filtered), float(1 - row @ plain), place in typical)
        for place, row in enumerate(held_out)
    ]


def cross_validated(by: Mapping[str, Vectors], filter_by: str, rounds: int = ROUNDS) -> dict[str, list[HeldOut]]:
    """Every candidate held out once, in one of so many folds; the others are filtered as the server does it.

    Args:
        by: the candidates in each embedding, in the same order.
        filter_by: the embedding that the filter sees.
    """
    count = len(by[filter_by])
    order = Random(0).sample(range(count), count)  # noqa: S311 - folds, not secrets
    results: dict[str, list[HeldOut]] = {name: [] for name in by}
    for fold in range(FOLDS):
        out = sorted(order[fold::FOLDS])
        seen = sorted(set(range(count)) - set(out))
        rows = by[filter_by][seen]
        kept = svd_filter(rows, rounds=rounds).kept
        for name, embedded in by.items():
            results[name] += compare(embedded[seen], kept, embedded[out])
    return results


def among_strangers(people: Sequence[Mapping[str, Vectors]], filter_by: str, name: str, share: float) -> Mixed:
    """As `cross_validated`, for each person, where candidates of the others take the places of some that are filtered.

    Args:
        people: of each the candidates in each embedding, in the same order.
        filter_by: the embedding that the filter sees.
        name: of the filter.
        share: of the candidates that are replaced.
    """
    results: dict[str, list[list[HeldOut]]] = {embedding: [[] for _ in people] for embedding in people[0]}
    kept_strangers, kept_all = 0, 0
    for place, by in enumerate(people):
        others = {each: np.concatenate([one[each] for one in people if one is not by]) for each in by}
        draw, count = Random(place), len(by[filter_by])  # noqa: S311 - as above
        order = draw.sample(range(count), count)
        for fold in range(FOLDS):
            out = sorted(order[fold::FOLDS])
            seen = sorted(set(range(count)) - set(out))
            strangers = draw.sample(range(len(others[filter_by])), round(share * len(seen)))
            own = draw.sample(seen, len(seen) - len(strangers))
            mixed = {each: np.concatenate([rows[own], others[each][strangers]]) for each, rows in by.items()}
            kept = svd_filter(mixed[filter_by], **FILTERS[name](len(seen))).kept
            kept_strangers += sum(row >= len(own) for row in kept)
            kept_all += len(kept)
            for each, rows in by.items():
                results[each][place] += compare(mixed[each], kept, rows[out])
    return Mixed(name, share, kept_strangers / kept_all, results)


def agreement(faces: Sequence[Vectors], identity: Vectors) -> Agreement:
    """How much the faces of a story's frames are one face, and that of an identity.

    Args:
        faces: of each frame, those that were found, the most prominent first.
        identity: [d].
    """
    first = [found[0] for found in faces if len(found)]
    return Agreement(
        among=mean(cosines_among(np.stack(first))) if len(first) > 1 else None,
        to_identity=mean(float(face @ _direction(identity)) for face in first),
        found=len(first) / len(faces),
    )


def spread(rows: Vectors) -> float:
    """Mean cosine over all pairs: how much candidates of one description are one person."""
    return float(np.mean([rows[a] @ rows[b] for a, b in combinations(range(len(rows)), 2)]))


def interval(groups: Sequence[Sequence[float]], *, draws: int = 2000) -> Interval | None:
    """The mean of all values with a 95 % bootstrap interval: people are drawn, since what is of one belongs together,
    then of each so many values as there are.
    """
    filled = [np.asarray(group, np.float64) for group in groups if len(group)]
    if not filled:
        return None
    draw, people = np.random.default_rng(0), len(filled)
    # [draws, places, people]: the sum of what would be drawn of each, for each place of a draw.
    sums = np.stack([each[draw.integers(len(each), size=(draws, people, len(each)))].sum(2) for each in filled], axis=2)
    picks = draw.integers(people, size=(draws, people))
    drawn = np.take_along_axis(sums, picks[..., None], axis=2)[..., 0].sum(1)
    counts = np.array([len(each) for each in filled])[picks].sum(1)
    low, high = np.quantile(drawn / counts, (0.025, 0.975))
    return Interval(float(np.concatenate(filled).mean()), float(low), float(high), len(filled))


def nearness(people: Sequence[Sequence[HeldOut]], *, typical: bool | None = None) -> dict[str, Any]:
    """The part of held-out candidates that are nearer to the filtered mean, and by how much.

    Args:
        people: the held-out candidates of each.
        typical: only those that are; None: all.
    """
    chosen = [[one for one in own if typical is None or one.typical == typical] for own in people]
    return {
        "candidates": sum(map(len, chosen)),
        "share_nearer": _told(interval([[float(one.nearer > 0) for one in own] for own in chosen])),
        "nearer_by": _told(interval([[one.nearer for one in own] for own in chosen])),
        "filtered": _told(interval([[one.filtered for one in own] for own in chosen])),
        "plain": _told(interval([[one.plain for one in own] for own in chosen])),
    }


def difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, Any] | None:
    """Paired differences of what both have."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return _told(interval([[a - b] for a, b in pairs]))


def _told(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else {name: round(value, 4) for name, value in asdict(found).items()}


def _direction(vector: Vectors) -> Vectors:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
