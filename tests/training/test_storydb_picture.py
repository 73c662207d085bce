"""Rendered pictures and what is known about them."""

from dataclasses import replace

import numpy as np
import pytest

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.groups import FrameRecord, Group, Split, sample_group
from storyloom_training.storydb.people import Garment
from storyloom_training.storydb.picture import Picture, render
from storyloom_training.storydb.pose import KEYPOINTS, POSES

SIZE = 96


def frame(
    scene: str = "park", time: str = "day", framing: str = "portrait", pose: str = "standing", people: int = 1
) -> FrameRecord:
    return FrameRecord(scene, time, framing, (pose,) * people, ("smile",) * people, seed=5)


def group_with(record: FrameRecord, index: int = 0) -> Group:
    drawn = sample_group(Split.TRAIN, index, people=len(record.poses), frames=1)
    return replace(drawn, frames=(record,))


def picture_of(record: FrameRecord, index: int = 0) -> Picture:
    return render(group_with(record, index), 0, SIZE)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_same_arguments_give_the_same_bytes(index: int) -> None:
    first = render(sample_group(Split.TRAIN, index), 1, SIZE)
    second = render(sample_group(Split.TRAIN, index), 1, SIZE)
    assert first.image.dtype == np.uint8
    assert first.image.tobytes() == second.image.tobytes()
    for a, b in zip(first.people, second.people, strict=True):
        assert a.mask.tobytes() == b.mask.tobytes()
        assert a.keypoints == b.keypoints


def test_a_frames_picture_does_not_depend_on_its_neighbours() -> None:
    group = sample_group(Split.TRAIN, 0, frames=6)
    alone = replace(group, frames=group.frames[3:4])
    assert render(group, 3, SIZE).image.tobytes() == render(alone, 0, SIZE).image.tobytes()


@pytest.mark.parametrize("people", [1, 2, 3])
@pytest.mark.parametrize("framing", ["portrait", "full body"])
def test_masks_are_disjoint_and_not_empty(people: int, framing: str) -> None:
    for index in range(8):
        masks = [person.mask for person in picture_of(frame(framing=framing, people=people), index).people]
        assert len(masks) == people
        assert all(mask.shape == (SIZE, SIZE) and mask.any() for mask in masks)
        assert np.sum(masks, axis=0).max() == 1


@pytest.mark.parametrize("framing", list(words.FRAMINGS))
def test_the_mask_is_where_the_person_changes_the_picture(framing: str) -> None:
    """Other skin and clothes change pixels inside the mask, and none well outside it."""
    record = frame(framing=framing)
    group = group_with(record)
    person = group.cast[0]
    other = replace(person, skin="dark" if person.skin != "dark" else "fair", top=Garment(person.top.kind, "teal"))
    ours, theirs = render(group, 0, SIZE), render(replace(group, cast=(other,)), 0, SIZE)
    changed = np.abs(ours.image.astype(int) - theirs.image.astype(int)).max(2) > 12
    mask = ours.people[0].mask
    grown = mask.copy()
    for axis in (0, 1):
        grown |= np.roll(grown, 1, axis) | np.roll(grown, -1, axis)
    assert changed[mask].mean() > 0.2
    assert not changed[~grown].any()


@pytest.mark.parametrize("pose", list(POSES))
def test_the_face_box_of_a_portrait_holds_the_landmarks(pose: str) -> None:
    for index in range(3):
        person = picture_of(frame(pose=pose), index).people[0]
        left, top, right, bottom = person.face_box
        x, y = (left + right) / 2, (top + bottom) / 2
        assert 0 <= x < SIZE
        assert 0 <= y < SIZE
        assert len(person.landmarks) == 5
        assert all(left <= px <= right and top <= py <= bottom for px, py in person.landmarks)
        (left_eye, _), (right_eye, _) = person.landmarks[:2]
        assert left_eye < right_eye
        assert set(person.keypoints) == set(KEYPOINTS)


@pytest.mark.parametrize("colour", ["red", "yellow", "green", "blue", "white", "black"])
def test_a_plain_top_has_its_colour(colour: str) -> None:
    group = group_with(frame(framing="portrait"))
    person = replace(group.cast[0], top=Garment("t-shirt", colour), hair_style="short straight", facial_hair="none")
    picture = render(replace(group, cast=(person,)), 0, SIZE)
    truth = picture.people[0]
    (_, neck), (x, _) = truth.keypoints["neck"], truth.keypoints["neck"]
    rows = slice(int(neck + 0.12 * SIZE), int(neck + 0.3 * SIZE))
    columns = slice(int(x - 0.08 * SIZE), int(x + 0.08 * SIZE))
    patch = picture.image[rows, columns][truth.mask[rows, columns]]
    expected = [(words.COLOUR[colour] >> shift) & 0xFF for shift in (16, 8, 0)]
    np.testing.assert_allclose(patch.mean(0), expected, atol=14)


@pytest.mark.parametrize("pattern", ["striped", "checked", "dotted"])
def test_a_pattern_is_seen(pattern: str) -> None:
    group = group_with(frame(framing="portrait"))
    pictures = [
        render(replace(group, cast=(replace(group.cast[0], top=Garment("t-shirt", "red", kind)),)), 0, SIZE).image
        for kind in ("plain", pattern)
    ]
    assert (np.abs(pictures[0].astype(int) - pictures[1].astype(int)).max(2) > 30).mean() > 0.01


@pytest.mark.parametrize("scene", list(words.SCENES))
def test_every_scene_renders_and_looks_like_no_other(scene: str) -> None:
    image = picture_of(frame(scene=scene)).image
    assert image.std() > 10
    for other in words.SCENES:
        if other < scene:
            distance = np.abs(image.astype(int) - picture_of(frame(scene=other)).image.astype(int)).mean()
            assert distance > 3, f"{scene} looks like {other}"


@pytest.mark.parametrize("pose", list(POSES))
def test_every_pose_renders_and_differs_from_standing(pose: str) -> None:
    picture = picture_of(frame(pose=pose, framing="full body"))
    assert 0.03 < picture.people[0].mask.mean() < 0.6
    if pose != "standing":
        standing = picture_of(frame(framing="full body"))
        assert (standing.image != picture.image).any(2).mean() > 0.005


@pytest.mark.parametrize("time", ["sunset", "night"])
def test_the_time_of_day_changes_the_light(time: str) -> None:
    day, later = picture_of(frame()).image, picture_of(frame(time=time)).image
    assert np.abs(day.astype(int) - later.astype(int)).mean() > 5


def test_the_seed_of_a_frame_moves_only_what_is_incidental() -> None:
    record = frame()
    first, second = picture_of(record), picture_of(replace(record, seed=6))
    assert (first.image != second.image).any()
    assert first.people[0].attributes == second.people[0].attributes


def test_sizes_show_the_same_picture() -> None:
    group = group_with(frame())
    small, large = render(group, 0, 64), render(group, 0, 128)
    reduced = large.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(reduced - small.image).mean() < 8
    assert small.people[0].mask.mean() == pytest.approx(large.people[0].mask.mean(), abs=0.02)
