"""The consistency score on pictures whose truth is known, and on stories of the engine."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from storyloom_model.consistency import Look, agreement, look, oklab, scores, story_score
from storyloom_model.denoiser import Denoiser
from storyloom_training.storydb.groups import Split, sample_group
from storyloom_training.storydb.picture import render
from tests.model.tiny import finish, tiny_anchors, tiny_job

PEOPLE, FRAMES, SIZE = 24, 4, 64


def coarse(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As a map of 16 by 16 positions would have it."""
    tile = SIZE // 16
    return (mask.reshape(16, tile, 16, tile).mean((1, 3)) > 0.4).repeat(tile, 0).repeat(tile, 1)


@pytest.fixture(scope="module")
def rendered() -> list[list[Look]]:
    """Looks of people in several scenes, framings and kinds of light each."""
    people = []
    for index in range(PEOPLE):
        group = sample_group(Split.TEST, index, people=1, frames=FRAMES)
        pictures = [render(group, frame, SIZE) for frame in range(FRAMES)]
        found = [look(picture.image, coarse(picture.people[0].mask)) for picture in pictures]
        people.append([one for one in found if one is not None])
    return people


def test_the_same_person_agrees_more_than_two_people(rendered: list[list[Look]]) -> None:
    same = [agreement(a, b) for looks in rendered for i, a in enumerate(looks) for b in looks[:i]]
    other = [
        agreement(a, b) for place, looks in enumerate(rendered) for a in looks for b in rendered[(place + 1) % PEOPLE]
    ]
    assert len(same) > 100
    assert len(other) > 300
    # Area under the curve: how often a pair of one person beats a pair of two.
    assert np.mean(np.array(same)[:, None] > np.array(other)) > 0.97
    assert np.mean(same) > np.mean(other) + 0.3


def test_a_frame_with_somebody_else_lowers_the_score(rendered: list[list[Look]]) -> None:
    true = scores([{"mia": one} for one in rendered[0]])["mia"]
    broken = scores([{"mia": one} for one in (*rendered[0][:-1], rendered[1][-1])])["mia"]
    assert true is not None
    assert broken is not None
    assert broken < true


def test_looks_are_shares_and_agreement_is_bounded(rendered: list[list[Look]]) -> None:
    first, second = rendered[0][0], rendered[3][1]
    assert first.sum() == pytest.approx(1, abs=1e-5)
    assert agreement(first, first) == pytest.approx(1, abs=1e-5)
    assert agreement(first, second) == agreement(second, first)
    assert 0 <= agreement(first, second) <= 1


def test_colours_are_where_oklab_has_them() -> None:
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], dtype=np.uint8)
    expected = [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585]]  # Ottosson's own figures.
    np.testing.assert_allclose(oklab(colours), expected, atol=1e-4)


def test_who_is_in_one_frame_has_no_score(rendered: list[list[Look]]) -> None:
    found = scores([{"mia": rendered[0][0], "bo": rendered[1][0]}, {"mia": rendered[0][1]}, {}])
    assert found["bo"] is None
    assert story_score(found) == found["mia"]
    assert story_score({"bo": None}) is None
    assert look(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.bool_)) is None


def test_a_story_has_a_score_for_each_of_its_characters(denoiser: Denoiser) -> None:
    state = finish(denoiser, tiny_job(3, anchors=tiny_anchors(denoiser, 2)))
    pictures = denoiser.decode(state, [0, 1, 2])
    found = denoiser.consistency(state, pictures)
    assert set(found) == {"mia", "bo"}
    assert all(score is not None and 0 <= score <= 1 for score in found.values())
    assert set(denoiser.looks(state, 0, pictures[0])) == {"mia"}
    assert denoiser.consistency(state, np.stack([pictures[1]] * 3))["mia"] != found["mia"]


def test_a_single_frame_has_no_score(denoiser: Denoiser) -> None:
    state = finish(denoiser, tiny_job(1))
    assert denoiser.consistency(state, denoiser.decode(state, [0])) == {"mia": None}
