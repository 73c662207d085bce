"""Which word of a description a person stands for, and what a trigger does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom_model import ComposedPrompt, compose
from storyloom_model.identity.class_words import class_word, worded


@pytest.mark.parametrize(
    ("description", "word"),
    [
        ("a girl with red hair", "girl"),
        ("an old man", "man"),
        ("a red-haired young woman, in a blue coat", "woman"),
        ("the king who has no clothes", "king"),
        ("a boy wearing a hat", "boy"),
        ("a man and his dog", "man"),
        ("knight", "knight"),
        ('"Grandma" (very old)', "Grandma"),
        ("a painter - tired", "painter"),
        ("with red hair", "hair"),
        ("Mia, a girl", "Mia"),
    ],
)
def test_the_class_word_ends_the_first_noun_phrase(description: str, word: str) -> None:
    found = class_word(description)
    assert found is not None
    assert description[slice(*found)] == word


def test_a_description_without_words_has_none() -> None:
    assert class_word("?!") is None
    assert worded(ComposedPrompt("? runs", {"mia": ((0, 1),)})).words == {"mia": ()}


def test_a_trigger_marks_the_word_before_it_and_is_not_read() -> None:
    cast = {"mia": "Mia, a girl img with red hair", "bo": "an old man"}
    prompt = compose("photo of", "{mia} sees {bo} and the img of {mia}", cast, [])
    assert isinstance(prompt, ComposedPrompt)
    found = worded(prompt)
    text = "photo of Mia, a girl with red hair sees an old man and the img of Mia, a girl with red hair"
    assert found.prompt.text == text
    said = {name: [text[slice(*span)] for span in spans] for name, spans in found.prompt.spans.items()}
    assert said == {"mia": ["Mia, a girl with red hair"] * 2, "bo": ["an old man"]}
    words = {name: [text[slice(*span)] for span in spans] for name, spans in found.words.items()}
    assert words == {"mia": ["girl", "girl"], "bo": ["man"]}


descriptions = st.text(alphabet="ab img,-.'é ", min_size=1, max_size=12)


@given(descriptions, descriptions)
def test_words_lie_in_their_mentions(first: str, second: str) -> None:
    prompt = compose("", "{mia} sees {bo}, {mia}", {"mia": first, "bo": second}, [])
    assert isinstance(prompt, ComposedPrompt)
    found = worded(prompt)
    for name, words in found.words.items():
        mentions = found.prompt.spans[name]
        assert len(words) in (0, len(mentions))
        assert all(m[0] <= w[0] < w[1] <= m[1] for w, m in zip(words, mentions, strict=False))
    if " img" not in first and " img" not in second:
        assert found.prompt == prompt
