"""What the text encoder learns to name, and that it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from storyloom_training.base import build_model
from storyloom_training.config import SMOKE, TextRecipe
from storyloom_training.prompts import Captioner
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.text import PERSON, WHOLE, person_labels, tokenise, train_caption_reader, whole_labels
from storyloom_training.tokenizer import corpus, train_tokenizer

GROUPS, FRAMES = 40, 4


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return Captioner(StoryDB(tmp_path_factory.mktemp("storydb"), Split.TRAIN, GROUPS, FRAMES, 64, 8))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus(100), 1600, 77).save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def test_labels_are_what_the_description_states(captioner: Captioner) -> None:
    for picture in range(0, GROUPS * FRAMES, 7):
        frame = captioner.described(picture, 1)
        for place, description in enumerate(frame.descriptions):
            attributes = frame.cast[place].attributes()
            for (name, classes), label in zip(PERSON.items(), person_labels(frame, place), strict=True):
                if label == 0:
                    assert name not in description.stated or name == "hat colour"
                elif name in attributes:
                    assert classes[label - 1] == attributes[name]
        assert person_labels(frame, len(frame.descriptions)) == [0] * len(PERSON)


def test_labels_of_the_whole_are_those_of_the_record(captioner: Captioner) -> None:
    frame = captioner.described(5, 0)
    labels = dict(zip(WHOLE, whole_labels(frame), strict=True))
    assert WHOLE["scene"][labels["scene"] - 1] == frame.record.scene
    assert WHOLE["pose 0"][labels["pose 0"] - 1] == frame.record.poses[0]


def test_descriptions_end_where_their_last_token_ends(captioner: Captioner, tokenizer: CLIPTokenizer) -> None:
    frames = [captioner.described(picture, 2) for picture in range(0, GROUPS * FRAMES, 9)]
    batch = tokenise(tokenizer, frames, torch.Generator().manual_seed(0))
    assert batch.ends
    for row, token, place in batch.ends:
        said = tokenizer.decode(batch.ids[row, 1 : token + 1]).replace(" ", "")
        assert said.endswith(frames[row].descriptions[place].text.lower().replace(" ", ""))
    for row, after in enumerate(batch.after.tolist()):
        assert tokenizer.eos_token_id in batch.ids[row, : after + 1]


def test_the_encoder_learns_to_read(captioner: Captioner, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    recipe = replace(SMOKE, text=TextRecipe(batch=16, steps=60, learning_rate=3e-3, warmup=5))
    encoder = build_model(recipe, tokenizer).text_encoder
    train_caption_reader(recipe, captioner, tmp_path, encoder, tokenizer)
    log = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.85 * log[0]["loss"]
