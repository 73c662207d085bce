"""References benchmark: what prompts give away, where references come from, and that agreement tells people apart."""

from __future__ import annotations

import pytest

from benchmarks.quality.attributes import PERSON, Reading, read_as
from benchmarks.quality.references import ATTRIBUTES, agreement, reference_of, worded
from benchmarks.quality.stories import CHARACTER, BenchStory, bench_story
from storyloom_training.identity.adapters.crops import face_seen


@pytest.fixture(scope="module")
def stories() -> list[BenchStory]:
    return [bench_story(index, 2) for index in range(4)]


def test_generic_prompts_say_nothing_of_looks(stories: list[BenchStory]) -> None:
    for story in stories:
        for prompt in worded(story, "generic"):
            ((first, last),) = prompt.spans[CHARACTER]
            assert prompt.text[first:last] in {"a man", "a woman", "a boy", "a girl"}


def test_words_say_all_that_is_measured(stories: list[BenchStory]) -> None:
    for story in stories:
        looks = read_as(story.group.cast[0])
        for prompt in worded(story, "words"):
            ((first, last),) = prompt.spans[CHARACTER]
            described = prompt.text[first:last]
            assert looks["skin"] in described
            assert looks["hair colour"] == "none" or looks["hair colour"] in described


def test_settings_are_the_same_whatever_is_said_of_the_person(stories: list[BenchStory]) -> None:
    for story in stories:
        rest = []
        for condition in ("generic", "reference", "words"):
            prompt = worded(story, condition)[0]
            ((first, last),) = prompt.spans[CHARACTER]
            rest.append((prompt.text[:first], prompt.text[last:]))
        assert rest[0] == rest[1] == rest[2]


def test_references_show_the_face(stories: list[BenchStory]) -> None:
    for story in stories:
        picture = reference_of(story.index, 128)
        assert face_seen(picture.people[0], 128)
        assert picture.people[0].attributes["skin"] == story.group.cast[0].skin


def test_agreement_is_whole_for_the_person_and_less_for_others(stories: list[BenchStory]) -> None:
    readings: list[list[Reading]] = [[read_as(story.group.cast[0])] * 2 for story in stories]
    assert agreement(stories, readings)["mean"] == 1
    assert agreement(stories, readings, shift=1)["mean"] < 1
    assert set(ATTRIBUTES) < set(PERSON)
