"""Iterative Identity Discovery: what most candidates share is found, and what is beside it is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storyloom_model.identity.discovery import LEAST_KEPT, discover, svd_filter
from storyloom_model.identity.features import FeaturesError, ReferenceFeatures

Rows = NDArray[np.float64]


def candidates(seed: int, count: int = 64, strangers: int = 12, width: int = 96, noise: float = 0.25) -> Rows:
    """Faces of one person, as pictures vary, and of strangers after them; of length 1 all."""
    draw = np.random.default_rng(seed)
    person, ways = draw.standard_normal(width), draw.standard_normal((6, width))
    own = person + noise * draw.standard_normal((count - strangers, 6)) @ ways
    own += 0.1 * draw.standard_normal(own.shape)
    rows = np.concatenate([own, draw.standard_normal((strangers, width))])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_the_book(rows: Rows, rounds: int, components: int) -> list[int]:
    """The filter by the eigenvectors of the rows' products, one row after the other."""
    left = list(range(len(rows)))
    for _ in range(rounds):
        taken = rows[left]
        _, vectors = np.linalg.eigh(taken.T @ taken)
        basis = vectors[:, -components:]
        errors = [float(np.mean((row - basis @ (basis.T @ row)) ** 2)) for row in taken]
        order = sorted(range(len(left)), key=lambda place: errors[place])
        left = sorted(left[place] for place in order[: len(left) * 6 // 10])
    return left


def test_rounds_keep_as_many_as_the_paper_says() -> None:
    found = svd_filter(candidates(1))
    assert [len(one.rows) for one in found.rounds] == [64, 38, 22]
    assert len(found.kept) == 13
    assert all(len(one.errors) == len(one.rows) for one in found.rounds)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.sampled_from([64, 40]), components=st.integers(1, 10))
def test_it_is_the_filter_by_the_book(seed: int, count: int, components: int) -> None:
    rows = candidates(seed, count, strangers=5)
    found = svd_filter(rows, components=components, least=1)
    assert list(found.kept) == by_the_book(rows, 3, components)
    np.testing.assert_allclose(found.mean, rows[list(found.kept)].mean(0), atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 1e3]), data=st.data())
def test_order_and_scale_do_not_matter(seed: int, scale: float, data: st.DataObject) -> None:
    rows = candidates(seed, 24, strangers=4)
    order = data.draw(st.permutations(range(24)))
    plain, moved = (svd_filter(one, components=4, least=3) for one in (rows, scale * rows[order]))
    assert sorted(order[place] for place in moved.kept) == list(plain.kept)
    np.testing.assert_allclose(moved.mean, scale * plain.mean, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("seed", range(5))
def test_strangers_are_left_out_and_the_mean_comes_nearer(seed: int) -> None:
    """Nearer to pictures of the person that were not among the candidates than the mean of all candidates is. (Not
    where one person varies so much that a mean of thirteen is a worse guess than one of all with strangers in it.)
    """
    rows = candidates(seed, 84, strangers=20, noise=0.04)
    seen, held_out = np.concatenate([rows[:44], rows[64:]]), rows[44:64]
    found = svd_filter(seen)
    assert max(found.kept) < 44

    def nearness(mean: NDArray[Any]) -> float:
        return float((held_out @ mean / np.linalg.norm(mean)).mean())

    assert nearness(found.mean) > nearness(seen.mean(0))


def test_rows_that_cannot_be_told_apart_are_all_kept() -> None:
    """As many vectors as rows rebuild everything."""
    rows = candidates(1, 10, strangers=2)
    assert svd_filter(rows, components=10, least=1).kept == tuple(range(10))
    assert svd_filter(rows, components=10, least=1).rounds == ()
    assert [len(one.rows) for one in svd_filter(candidates(1, 16, 2), components=10, least=1).rounds] == [16]


@given(count=st.integers(1, 80), least=st.integers(1, 20), rounds=st.integers(0, 5))
def test_enough_rows_are_left_for_a_mean(count: int, least: int, rounds: int) -> None:
    found = svd_filter(candidates(1, count, 0), least=least, rounds=rounds)
    assert len(found.kept) >= min(count, least)
    left = count
    for one in found.rounds:
        assert len(one.rows) == left
        left = max(int(0.6 * left + 1e-9), 1)
    assert len(found.kept) == left
    assert len(found.rounds) == rounds or int(0.6 * left + 1e-9) < least or left <= 1


@pytest.mark.parametrize("count", [16, 32, 64])
def test_few_candidates_do_not_keep_strangers(count: int) -> None:
    """A quarter are other people, each somebody else; pictures of one person are half alike."""
    for seed in range(5):
        rows = candidates(seed, count, strangers=count // 4, noise=0.3)
        kept = svd_filter(rows).kept
        assert LEAST_KEPT <= len(kept) < count
        assert sum(row >= count - count // 4 for row in kept) <= 1


@pytest.mark.parametrize(
    ("rows", "settings_"),
    [
        (np.zeros((0, 4)), {}),
        (np.zeros(4), {}),
        (np.full((3, 4), np.nan), {}),
        (np.ones((3, 4)), {"components": 0}),
        (np.ones((3, 4)), {"keep": 0.0}),
        (np.ones((3, 4)), {"rounds": -1}),
    ],
)
def test_what_makes_no_sense_is_refused(rows: Rows, settings_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the filter takes|use 0, 1 and"):
        svd_filter(rows, **settings_)


def faces(rows: Rows) -> list[ReferenceFeatures | None]:
    return [
        ReferenceFeatures(
            face=row.astype(np.float32), face_states=np.full((3, 2), place, np.float16), face_embedding=row
        )
        for place, row in enumerate(rows)
    ]


def test_an_identity_is_the_mean_of_those_that_agree_and_the_sight_of_the_nearest() -> None:
    rows = candidates(3, 64)
    shown = faces(rows)
    shown[5] = None
    found = discover(shown)
    kept = [found.candidates[place] for place in found.filtered.kept]
    assert 5 not in found.candidates
    assert len(found.candidates) == 63
    assert max(kept) < 52
    face = found.features.face
    assert face is not None
    assert float(np.linalg.norm(face)) == pytest.approx(1, abs=1e-6)
    mean = rows[kept].mean(0)
    np.testing.assert_allclose(face, mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(found.features.face_embedding, mean, atol=1e-5)
    assert found.medoid == max(kept, key=lambda place: float(rows[place] @ mean))
    assert found.features.face_states is not None
    assert found.features.face_states[0, 0] == found.medoid
    assert found.features.role == "character"


def test_without_faces_characters_are_compared() -> None:
    rows = candidates(4, 20, strangers=2)
    shown: list[ReferenceFeatures | None] = [ReferenceFeatures(character_embedding=row) for row in rows]
    shown[0] = ReferenceFeatures(face=np.ones(4, np.float32))
    found = discover(shown)
    assert found.features.face is None
    assert 0 not in found.candidates


def test_too_few_candidates_say_so() -> None:
    with pytest.raises(FeaturesError, match="fewer than 4 of 5 candidates show a face"):
        discover([*faces(candidates(1, 3, 0)), None, None])
