"""The rendered set on disk: what it holds, and that it never passes for another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storyloom_training.storydb.dataset import MAX_PEOPLE, StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.storydb.picture import render


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StoryDB:
    data = StoryDB(tmp_path_factory.mktemp("storydb"), Split.TRAIN, groups=6, frames=2, size=32, mask_size=8)
    data.prepare()
    return data


def test_pictures_are_the_renders_of_their_groups(data: StoryDB) -> None:
    assert data.pictures.shape == (12, 32, 32, 3)
    for index, frame in ((0, 0), (3, 1), (5, 0)):
        expected = render(data.group(index), frame, 32).image
        np.testing.assert_array_equal(data.pictures[index * 2 + frame], expected)


def test_masks_are_the_coverage_of_each_person(data: StoryDB) -> None:
    assert data.masks.shape == (12, MAX_PEOPLE, 8, 8)
    for index in range(6):
        people = render(data.group(index), 0, 32).people
        for place in range(MAX_PEOPLE):
            covered = data.masks[index * 2, place].astype(float).mean() / 255
            expected = people[place].mask.mean() if place < len(people) else 0.0
            assert covered == pytest.approx(expected, abs=1 / 255)


def test_heads_are_the_upper_part_of_their_people(data: StoryDB) -> None:
    assert data.heads.shape == data.masks.shape
    assert (data.heads <= data.masks).all()
    for index in range(6):
        for place, person in enumerate(render(data.group(index), 0, 32).people):
            rows = np.flatnonzero(data.heads[index * 2, place].any(1))
            assert rows.size
            assert rows.max() <= (person.face_box[3] + 0.1 * (person.face_box[3] - person.face_box[1])) / 4


def test_preparing_again_keeps_the_files(data: StoryDB) -> None:
    before = (data.folder / "pictures.npy").stat().st_mtime_ns
    StoryDB(data.folder, Split.TRAIN, 6, 2, 32, 8).prepare()
    assert (data.folder / "pictures.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change", [{"groups": 7}, {"frames": 3}, {"size": 64}, {"mask_size": 4}, {"split": Split.TEST}]
)
def test_a_folder_made_by_other_settings_is_refused(data: StoryDB, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="choose another folder"):
        replace(data, **change).prepare()  # type: ignore[arg-type]


def test_a_set_that_was_cut_short_is_rendered_anew(tmp_path: Path) -> None:
    data = StoryDB(tmp_path, Split.TRAIN, groups=1, frames=2, size=32, mask_size=8)
    np.save(tmp_path / "pictures.npy", np.zeros((1, 1), np.uint8))
    data.prepare()
    np.testing.assert_array_equal(data.pictures[1], render(data.group(0), 1, 32).image)
