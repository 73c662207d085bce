"""The scored stories: the same for everyone, of unseen identities, with what their words state."""

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality.attributes import HEADS, PERSON, VISIBLE, read_as, truth
from benchmarks.quality.stories import CHARACTER, bench_story
from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.groups import Split, sample_group, split_of

INDICES = st.integers(0, 5000)


@given(INDICES, st.integers(2, 8))
@settings(deadline=None)
def test_a_story_follows_from_its_index(index: int, frames: int) -> None:
    story = bench_story(index, frames)
    assert story == bench_story(index, frames)
    assert len(story.prompts) == len(story.group.frames) == frames


@given(INDICES)
@settings(deadline=None)
def test_stories_show_one_unseen_person_in_different_scenes_and_never_from_close_up(index: int) -> None:
    group = bench_story(index, 4).group
    assert len(group.cast) == 1
    assert split_of(group.cast[0]) is Split.TEST
    assert len({record.scene for record in group.frames}) == 4
    assert {record.framing for record in group.frames} <= {"portrait", "full body"}


@given(INDICES)
@settings(deadline=None)
def test_every_prompt_names_its_framing_and_holds_the_description_at_its_span(index: int) -> None:
    story = bench_story(index, 4)
    for prompt, record in zip(story.prompts, story.group.frames, strict=True):
        assert prompt.text.startswith(words.FRAMINGS[record.framing])
        ((start, end),) = prompt.spans[CHARACTER]
        assert prompt.text[start:end] == story.description.text


@given(INDICES)
@settings(deadline=None)
def test_the_true_person_fits_what_is_stated(index: int) -> None:
    story = bench_story(index, 2)
    values = read_as(story.group.cast[0])
    assert set(story.stated) == story.description.stated & set(PERSON)
    assert all(values[name] in accepted for name, accepted in story.stated.items())
    if "glasses" in story.stated and values["glasses"] in story.description.text:
        assert story.stated["glasses"] == {values["glasses"]}


def test_glasses_of_no_stated_shape_may_have_either() -> None:
    accepted = [bench_story(index, 2).stated.get("glasses") for index in range(120)]
    assert frozenset({"round", "square"}) in accepted
    assert frozenset({"round"}) in accepted


def test_stories_have_different_people() -> None:
    assert len({bench_story(index, 2).group.cast for index in range(60)}) == 60


def test_every_attribute_of_a_picture_has_a_head_and_a_known_value() -> None:
    assert set(VISIBLE["full body"]) >= set(VISIBLE["portrait"])
    for index in range(60):
        group = sample_group(Split.TRAIN, index, people=1, frames=8)
        for frame in range(8):
            shown = truth(group, frame)
            assert list(shown) == list(HEADS)
            assert all(value in HEADS[name] for name, value in shown.items())
