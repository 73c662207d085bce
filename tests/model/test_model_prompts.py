"""Prompts as a writer of stories sees them, and the tokens that belong to each character."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom_model.prompts import ComposedPrompt, PromptError, check_prompt, compose, token_flags
from tests.model.tiny import tiny_tokenizer

CAST = {"mia": "a girl with red hair", "bo": "an old man"}


def composed(prompt: str, listed: tuple[str, ...] = (), style: str = "") -> ComposedPrompt:
    result = compose(style, prompt, CAST, listed)
    assert isinstance(result, ComposedPrompt)
    return result


@pytest.mark.parametrize(
    ("style", "prompt", "listed", "text"),
    [
        ("", "{mia} walks", [], "a girl with red hair walks"),
        ("", "{mia} and {mia}", ["mia"], "a girl with red hair and a girl with red hair"),
        ("a painting of", "walking", ["mia", "bo"], "a painting of a girl with red hair and an old man, walking"),
        ("", "{bo} waits", ["bo", "mia", "mia"], "a girl with red hair, an old man waits"),
        (" ink, ", " an empty street ", [], "ink, an empty street"),
        ("", "a sign {{mia}} and {mia}", [], "a sign {mia} and a girl with red hair"),
    ],
)
def test_texts(style: str, prompt: str, listed: list[str], text: str) -> None:
    result = compose(style, prompt, CAST, listed)
    assert isinstance(result, ComposedPrompt)
    assert result.text == text


@given(
    st.lists(st.sampled_from(["{mia}", "{bo}", " at the {{ sea }} ", ", "]), max_size=6),
    st.sets(st.sampled_from([*CAST])),
)
def test_every_span_is_a_description(parts: list[str], listed: set[str]) -> None:
    prompt = "".join(parts)
    result = composed(prompt, tuple(sorted(listed)), "a drawing of")
    for name, description in CAST.items():
        spans = result.spans.get(name, ())
        assert all(result.text[start:end] == description for start, end in spans)
        assert len(spans) == max(parts.count(f"{{{name}}}"), name in listed)


@pytest.mark.parametrize(
    ("prompt", "listed", "word"),
    [("{zoe} sings", [], "{zoe}"), ("rain", ["zoe"], "{zoe}"), ("a { b", [], "never closed"), ("{}", [], "{}")],
)
def test_bad_prompts_say_why(prompt: str, listed: list[str], word: str) -> None:
    result = compose("", prompt, CAST, listed)
    assert isinstance(result, PromptError)
    assert word in result.message


def test_a_description_is_not_a_template() -> None:
    result = compose("", "{a}", {"a": "a {b} robot", "b": "x"}, [])
    assert isinstance(result, ComposedPrompt)
    assert result.text == "a {b} robot"


def test_flags_mark_exactly_the_descriptions_words() -> None:
    prompt = composed("the {mia} walks with {mia}")
    encoding = tiny_tokenizer()(prompt.text, return_offsets_mapping=True)
    flags = token_flags(encoding["offset_mapping"], prompt.spans["mia"])
    marked = [
        prompt.text[start:end] for (start, end), flag in zip(encoding["offset_mapping"], flags, strict=True) if flag
    ]
    assert marked == ["a", "girl", "with", "red", "hair"] * 2


def test_a_prompt_that_fits_is_not_cut() -> None:
    tokenizer = tiny_tokenizer()
    assert check_prompt(tokenizer, "a " * 75, 77) is None
    assert check_prompt(tokenizer, "", 77) is None
    assert check_prompt(tokenizer, composed("{mia}"), 7) is None


def test_what_is_cut_is_told_in_whole_words() -> None:
    tokenizer = tiny_tokenizer()
    assert check_prompt(tokenizer, "a " * 74 + "zebra walks", 77) == "zebra walks"
    assert check_prompt(tokenizer, composed("{mia}"), 6) == "hair"


def test_the_front_process_needs_no_torch() -> None:
    code = (
        "import sys, storyloom_model, storyloom_model.noise, storyloom_model.fingerprints, storyloom_model.windows\n"
        "assert storyloom_model.ExecutionOptions().bucket(5) == 6\n"
        "assert storyloom_model.noise.frame_seed(1, 0)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
