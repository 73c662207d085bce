"""The safety hook: modes, failures, the built-in checks, and a log without prompts."""

import logging
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storyloom_server.blocked_words import BlockedWords
from storyloom_server.options import ServerOptions
from storyloom_server.picture_classifier import TransformersImageCheck
from storyloom_server.safety import ALLOWED, Safety, Verdict
from storyloom_server.safety_checks import SafetySetupError, load_safety
from storyloom_server.story_error import StoryError

GREY = np.full((16, 16, 3), 128, np.uint8)
RED = np.full((16, 16, 3), (255, 0, 0), np.uint8)
TEXTS = {"story.style": "oil on canvas", "story.frames[0].prompt": "a dragon sleeps", "story.frames[1].prompt": "a cat"}


class NoDragons:
    """Refuses dragons and red pictures; breaks down at cats."""

    name = "no-dragons"

    def prompt(self, text: str) -> Verdict:
        if "phoenix" in text:
            raise RuntimeError(f"cannot judge {text}")
        return Verdict(refused=True, label="dragon", score=0.9) if "dragon" in text else ALLOWED

    def picture(self, rgb: NDArray[np.uint8]) -> Verdict:
        if not rgb.any():
            raise RuntimeError("too dark")
        return Verdict(refused=True, label="red") if rgb[0, 0, 0] > 200 else ALLOWED


def test_block_refuses_every_bad_field(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoryError) as caught:
        Safety("block", [NoDragons()]).check_prompts({**TEXTS, "story.title": "dragon"}, "story-1")
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SAFETY_BLOCKED")
    assert [violation.path for violation in error.violations] == ["story.frames[0].prompt", "story.title"]
    assert "sleeps" not in f"{error.message}{caplog.text}"
    assert len(caplog.records) == 2


def test_flag_lets_through_and_tells() -> None:
    found = Safety("flag", [NoDragons()]).check_prompts(TEXTS, "story-1")
    assert found.keys() == TEXTS.keys()
    assert [path for path, flags in found.items() if flags == ("no-dragons:dragon",)] == ["story.frames[0].prompt"]


def test_off_asks_nobody() -> None:
    safety = Safety("off", [NoDragons()])
    assert not safety.on
    assert safety.check_prompts({"p": "phoenix and dragon"}, "s") == {"p": ()}
    assert safety.check_picture(RED, "story.frames[0]", "s").allowed


@pytest.mark.parametrize(("mode", "allowed"), [("flag", True), ("block", False)])
def test_pictures_are_decided_on(mode: Any, allowed: bool) -> None:
    safety = Safety(mode, [NoDragons()])
    assert safety.check_prompts({"p": "fine"}, "s") == {"p": ()}
    assert safety.check_picture(GREY, "story.frames[0]", "s").flags == ()
    decision = safety.check_picture(RED, "story.frames[0]", "s")
    assert (decision.allowed, decision.flags) == (allowed, ("no-dragons:red",))


def test_a_check_that_fails_blocks_when_blocking_and_is_logged_when_flagging(caplog: pytest.LogCaptureFixture) -> None:
    blocking, flagging = Safety("block", [NoDragons()]), Safety("flag", [NoDragons()])
    with pytest.raises(StoryError) as caught:
        blocking.check_prompts({"p": "a phoenix"}, "s")
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INTERNAL, "SAFETY_CHECK_FAILED")
    with pytest.raises(StoryError):
        blocking.check_picture(np.zeros_like(GREY), "story.frames[0]", "s")
    caplog.clear()
    assert flagging.check_prompts({"p": "a phoenix"}, "s") == {"p": ()}
    (record,) = caplog.records
    assert record.message == "safety check failed"
    told = record.storyloom_fields  # type: ignore[attr-defined]
    assert told["error"] == "RuntimeError"
    assert Path(__file__).name in told["at"]
    assert "phoenix" not in f"{caplog.text}{told}"


@pytest.mark.parametrize(
    "text",
    [
        "a red dragon",
        "DRAGON!",
        "dragon,",
        "ｄｒａｇｏｎ",  # noqa: RUF001 - full width
        "dr\u00e1g\u00f3n",
        "d\u200brag\u00adon",
        "dr\u0430g\u043en",  # Cyrillic a and o
        "\U0001d589\U0001d597\U0001d586\U0001d58c\U0001d594\U0001d593",  # Fraktur
        "house   of\n cards",
        "House-of-Cards",
        "黒い龍だ",
    ],
)
def test_blocked_words_are_found_however_they_are_spelled(text: str) -> None:
    assert BlockedWords(["Dragon", "house of cards", "龍"]).prompt(text).refused


@pytest.mark.parametrize("text", ["", "snapdragons", "dragonfly", "house of card", "cards of house", "a cat"])
def test_other_words_are_let_through(text: str) -> None:
    assert not BlockedWords(["dragon", "house of cards", ""]).prompt(text).refused


@given(st.text())
def test_any_text_can_be_looked_at_and_contains_itself(text: str) -> None:
    check = BlockedWords(["dragon", text])
    assert check.prompt(f"{text} dragon").refused
    assert check.picture(GREY) == ALLOWED


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer with random weights that always answers label "bad" with about 0.73."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("classifier")
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
        id2label={0: "good", 1: "bad"},
        label2id={"good": 0, "bad": 1},
    )
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_classifier_refuses_by_label_and_threshold(classifier: Path) -> None:
    check = TransformersImageCheck(classifier, ["Bad"], 0.7)
    verdict = check.picture(GREY)
    assert (verdict.refused, verdict.label) == (True, "bad")
    assert verdict.score == pytest.approx(0.731, abs=0.001)
    assert check.picture(np.zeros((40, 60, 3), np.uint8)).refused
    assert check.prompt("anything") == ALLOWED
    assert not TransformersImageCheck(classifier, ["bad"], 0.75).picture(GREY).refused
    assert not TransformersImageCheck(classifier, ["good"], 0.5).picture(GREY).refused
    with pytest.raises(ValueError, match="use some of good, bad"):
        TransformersImageCheck(classifier, ["ugly"], 0.5)


def test_checks_are_made_as_the_options_say(classifier: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# ours\ndragon  # the beast\n\nhouse of cards\n")
    safety = load_safety(
        ServerOptions(
            safety="block",
            blocked_words=words,
            picture_classifier=classifier,
            refused_labels=" bad ",
            safety_check="tests.server.test_server_safety:NoDragons",
        )
    )
    with pytest.raises(StoryError) as caught:
        safety.check_prompts(TEXTS, "s")
    assert "blocked-words:word, no-dragons:dragon" in caught.value.message
    assert safety.check_picture(RED, "p", "s").flags == ("picture-classifier:bad", "no-dragons:red")
    assert not load_safety(ServerOptions(blocked_words=words)).on


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("blocked_words", "none.txt", "--blocked-words none.txt cannot be used: "),
        ("picture_classifier", "none", "--picture-classifier none cannot be used: "),
        ("safety_check", "tests.server.serving:ROOT", "--safety-check tests.server.serving:ROOT cannot be used: "),
        ("safety_check", "no_such_module:X", "No module named 'no_such_module'"),
        ("safety_check", "builtins:object", "it has no name, prompt, picture"),
    ],
)
def test_checks_that_cannot_be_made_are_told(option: str, value: str, told: str) -> None:
    with pytest.raises(SafetySetupError) as caught:
        load_safety(ServerOptions.model_validate({"safety": "flag", option: value, "refused_labels": "bad"}))
    assert told in str(caught.value)


def test_a_list_without_words_is_told(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("# nothing\n")
    with pytest.raises(SafetySetupError, match="it has no words"):
        load_safety(ServerOptions(safety="flag", blocked_words=tmp_path / "words"))


def test_the_log_names_the_story_and_the_check(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Safety("flag", [NoDragons()]).check_prompts(TEXTS, "story-7")
    told = caplog.records[0].storyloom_fields  # type: ignore[attr-defined]
    assert told == {
        "story_id": "story-7",
        "what": "story.frames[0].prompt",
        "check": "no-dragons",
        "label": "dragon",
        "score": 0.9,
        "mode": "flag",
    }
