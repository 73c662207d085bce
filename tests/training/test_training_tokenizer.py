"""The tokenizer: words of the procedural world are single tokens, and nothing is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from storyloom_training.tokenizer import corpus, train_tokenizer

TOKENIZER = train_tokenizer(corpus(600), 1600, 77)


@pytest.mark.parametrize("word", ["sunglasses", "shoulder", "elderly", "whiteboard", "jeans", "asian"])
def test_words_of_stories_are_one_token(word: str) -> None:
    assert TOKENIZER.tokenize(word) == [word + "</w>"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_every_text_is_encoded_without_unknown_tokens(text: str) -> None:
    body = TOKENIZER(text, add_special_tokens=False).input_ids
    specials = {TOKENIZER.bos_token_id, TOKENIZER.eos_token_id}
    assert "endoftext" in text or "startoftext" in text or not specials & set(body)


def test_it_survives_saving(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a portrait of a young girl with red braids"
    assert again(text).input_ids == TOKENIZER(text).input_ids
    assert again.model_max_length == 77
