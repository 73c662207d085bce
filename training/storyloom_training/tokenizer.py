"""A CLIP tokenizer of our own: byte-level BPE in CLIP's published form (vocab.json, merges.txt, "</w>" endings)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from random import Random

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from storyloom_training.storydb.captions import describe_cast, write_caption
from storyloom_training.storydb.groups import Split, sample_group

# Words that story prompts use and the procedural captions don't, so that they don't cost a token per letter.
EXTRA_WORDS = """
photo painting drawing sketch watercolour cartoon comic storybook scene style cozy quiet sunny bright busy tranquil
peaceful beautiful serene bustling wooden large indoor outdoor city town village mountain river pond bridge tree trees
flower sky night evening morning rain snow window door table chair sofa desk counter stove shelf shelves board whiteboard
blackboard chess game games music guitars drums laptop laptops computer phone book books newspaper letter basket fruit
fruits vegetables bread cake coffee tea cup glass dog cat bird horse car bus train bicycle boat kite ball balloon umbrella
working talking discussing laughing smiling looking eating drinking sleeping singing writing knitting watering fishing
swimming climbing hiking cycling shopping exploring studying playing watching posing together happy sad angry surprised
kind old tall short woman man girl boy child person people friend friends teacher doctor nurse chef artist gardener
sweater cardigan blouse suit uniform scarf boots shoes gloves apron traditional wrinkles freckles eyes round square oval
asian african european hispanic american south east west north orchard greenhouse courtyard backyard studio museum
marketplace restaurant office hospital airport harbour castle tower church field meadow hill valley waterfall cave island
""".split()

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
