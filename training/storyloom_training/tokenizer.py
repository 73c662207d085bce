"""A CLIP tokenizer of our own: byte-level BPE in CLIP's published form (vocab.json, merges.txt, "</w>" endings)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from storyloom_training.storydb.captions import describe_cast, write_caption
from storyloom_training.storydb.groups import Split, sample_group

# Words that story prompts use and the procedural captions don't, so that they don't cost a token per letter.
EXTRA_WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's pre-tokenizer, as its published tokenizer.json states it.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def corpus(captions: int) -> Iterator[str]:
    """Captions of the training split, then the extra words."""
    for index in range(captions):
        group = sample_group(Split.TRAIN, index, frames=1)
        texts = tuple(description.text for description in describe_cast(group))
        yield write_caption(Random(index), group.frames[0], texts).text  # noqa: S311
    for _ in range(40):
        yield " ".join(EXTRA_WORDS)


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> CLIPTokenizer:
    """Learns merges on `texts`; any text can be encoded, because every byte has a token."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(alphabet), initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in _merges(learner)]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    known = set(tokens)
    for pair in merges:
        joined = "".join(pair)
        if joined not in known:
            tokens.append(joined)
            known.add(joined)
    vocab = {token: index for index, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _merges(learner: Tokenizer) -> list[list[str]]:
    model = json.loads(learner.to_str())["model"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
