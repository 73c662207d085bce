"""Groups: who is in them, how many, and that no identity is in two splits."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.groups import Split, sample_group, split_of
from storyloom_training.storydb.people import sample_person
from storyloom_training.storydb.pose import POSES

SPLITS = st.sampled_from(Split)
INDICES = st.integers(0, 10**6)


def looks(split: Split, groups: int) -> set[tuple[str, ...]]:
    return {
        tuple(person.attributes().values()) for index in range(groups) for person in sample_group(split, index).cast
    }


@given(SPLITS, INDICES)
def test_a_group_follows_from_its_index(split: Split, index: int) -> None:
    assert sample_group(split, index) == sample_group(split, index)


@given(SPLITS, INDICES)
def test_a_group_has_five_to_twelve_frames_and_one_to_three_people(split: Split, index: int) -> None:
    group = sample_group(split, index)
    assert 5 <= len(group.frames) <= 12
    assert 1 <= len(group.cast) <= 3
    for frame in group.frames:
        assert len(frame.poses) == len(frame.expressions) == len(group.cast)


@given(SPLITS, INDICES)
def test_frames_of_a_group_are_in_different_scenes(split: Split, index: int) -> None:
    scenes = [frame.scene for frame in sample_group(split, index).frames]
    assert len(set(scenes)) == len(scenes)


@given(INDICES, st.integers(1, 3), st.integers(1, 25))
def test_people_and_frames_can_be_asked_for(index: int, people: int, frames: int) -> None:
    group = sample_group(Split.TRAIN, index, people=people, frames=frames)
    assert (len(group.cast), len(group.frames)) == (people, frames)


def test_groups_differ() -> None:
    assert len({sample_group(Split.TRAIN, index).cast for index in range(200)}) == 200


def test_no_look_is_in_two_splits() -> None:
    train, validation, test = looks(Split.TRAIN, 3000), looks(Split.VALIDATION, 300), looks(Split.TEST, 300)
    assert len(train) > 3000
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_splits_have_the_stated_shares() -> None:
    rng = Random(7)  # noqa: S311
    splits = [split_of(sample_person(rng)) for _ in range(4000)]
    assert abs(splits.count(Split.TRAIN) / 4000 - 0.90) < 0.02
    assert abs(splits.count(Split.VALIDATION) / 4000 - 0.04) < 0.015
    assert abs(splits.count(Split.TEST) / 4000 - 0.06) < 0.015


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_people_are_possible(seed: int) -> None:
    person = sample_person(Random(seed))  # noqa: S311
    assert (person.bottom is None) == (person.top.kind == "dress")
    if person.facial_hair != "none":
        assert person.gender == "male"
        assert person.age != "child"
    if person.bottom and person.bottom.kind != "jeans":
        assert person.bottom.colour != person.top.colour


def test_every_scene_pose_and_framing_is_drawn() -> None:
    frames = [frame for index in range(150) for frame in sample_group(Split.TRAIN, index).frames]
    assert {frame.scene for frame in frames} == set(words.SCENES)
    assert {pose for frame in frames for pose in frame.poses} == set(POSES)
    assert {frame.framing for frame in frames} == set(words.FRAMINGS)


def test_the_world_is_rich_enough() -> None:
    assert len(words.SCENES) >= 16
    assert len(POSES) >= 12
    assert set(words.ACTIONS) == set(POSES)
