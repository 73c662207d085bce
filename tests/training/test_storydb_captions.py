"""Captions: the marked descriptions, their sharing within a group, and their variety."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_training.storydb import vocabulary as words
from storyloom_training.storydb.captions import describe_cast, write_caption
from storyloom_training.storydb.groups import Split, sample_group

INDICES = st.integers(0, 10**6)


@given(INDICES, st.integers(0, 31), st.integers(0, 2**32))
def test_spans_cut_out_the_shared_descriptions(index: int, variant: int, seed: int) -> None:
    group = sample_group(Split.TRAIN, index)
    texts = tuple(description.text for description in describe_cast(group, variant))
    assert len(texts) == len(group.cast)
    rng = Random(seed)  # noqa: S311
    for frame in group.frames:
        caption = write_caption(rng, frame, texts)
        assert tuple(caption.text[start:end] for start, end in caption.spans) == texts


@given(INDICES)
@settings(max_examples=50)
def test_wording_varies_over_draws(index: int) -> None:
    group = sample_group(Split.TRAIN, index)
    texts = tuple(description.text for description in describe_cast(group))
    captions = {write_caption(Random(draw), group.frames[0], texts).text for draw in range(24)}  # noqa: S311
    assert len(captions) >= 4
    assert len({describe_cast(group, variant) for variant in range(16)}) >= 3


@given(INDICES, st.integers(0, 15))
def test_what_a_description_states_is_in_its_words(index: int, variant: int) -> None:
    group = sample_group(Split.TEST, index, people=1)
    person, description = group.cast[0], describe_cast(group, variant)[0]
    said = {
        "skin": f"{person.skin} skin",
        "hair colour": "bald" if person.hair_style == "bald" else person.hair_colour,
        "top": person.top.kind,
        "top colour": person.top.colour,
        "hat": person.hat.kind if person.hat else "",
        "bottom": person.bottom.kind if person.bottom else "",
    }
    for name, phrase in said.items():
        if name in description.stated:
            assert phrase in description.text
    if "top" not in description.stated:
        assert f"{person.top.colour} {person.top.kind}" not in description.text


@given(INDICES)
def test_every_caption_names_its_scene_and_no_other_framing(index: int) -> None:
    group = sample_group(Split.TRAIN, index)
    texts = tuple(description.text for description in describe_cast(group))
    for frame in group.frames:
        text = write_caption(Random(index), frame, texts).text  # noqa: S311
        assert any(place in text for place in words.SCENES[frame.scene])
        said = {name for name, phrases in words.FRAMINGS.items() if text.startswith(phrases)}
        assert said <= {frame.framing}


def test_most_captions_name_their_framing_and_some_leave_it_open() -> None:
    frame = sample_group(Split.TRAIN, 0).frames[0]
    named = [
        write_caption(Random(draw), frame, ("a man",) * len(frame.poses)).text.startswith(words.FRAMINGS[frame.framing])  # noqa: S311
        for draw in range(200)
    ]
    assert 0.7 < sum(named) / 200 < 1


@given(INDICES, st.integers(0, 15))
def test_articles_fit(index: int, variant: int) -> None:
    for description in describe_cast(sample_group(Split.TRAIN, index), variant):
        padded = f" {description.text} "
        for vowel in "aeiou":
            assert f" a {vowel}" not in padded


def test_some_attributes_stay_unsaid() -> None:
    stated = [describe_cast(sample_group(Split.TRAIN, index))[0].stated for index in range(300)]
    for name in ("skin", "hair colour", "top colour", "bottom colour"):
        share = sum(name in names for names in stated) / len(stated)
        assert 0.1 < share < 0.95
