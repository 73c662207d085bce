"""What adapters of words make of a story's prompts: persons in place of class words, once for all steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from storyloom_model.encoder import TextEmbeddings, TextEncoder
from storyloom_model.identity.adapter import IdentityAdapter, WordMaker
from storyloom_model.identity.casting import story_identities
from storyloom_model.identity.class_words import WordedPrompt
from storyloom_model.identity.features import FeaturesError
from storyloom_model.jobs import StoryJob
from storyloom_model.prompts import ComposedPrompt


def first_fused_step(start: float, steps: int) -> int:
    """The first step, counted from 0, that reads the text with persons: the one after the first ``start`` of the steps.

    As in PhotoMaker's pipeline, whose step ``start_merge_step`` itself still reads plain text.
    """
    # Of products such as 0.29 * 100, which is a little less than 29.
    return math.floor(start * steps + 1e-9) + 1


def fused_text(
    job: StoryJob, adapter: IdentityAdapter, words: WordMaker, prompts: Sequence[WordedPrompt], encoder: TextEncoder
) -> tuple[TextEmbeddings, Tensor]:
    """The text of the frames' and anchors' prompts with persons in it.

    A character's scale, times the adapter's, says how far the text goes from plain words (0) to the person (1).

    Args:
        job: some of its characters have references.
        adapter: the one that the job names.
        words: its maker of words.
        prompts: one for each frame and anchor.
        encoder: of the text.

    Returns:
        The text, and the tokens of each character in it: bool [G, K, T], as of ``TextEncoder.token_mask``.

    Raises:
        FeaturesError: features are damaged, of other encoders, or lack what the adapter needs; or a prompt has no room.
    """
    identities = story_identities(job, adapter)
    persons = {name: words.identities(name, one) for name, one in identities.items()}
    composed = [one.prompt for one in prompts]
    mask = encoder.token_mask(composed, job.characters)
    mentions = [mentions_of(one, persons, encoder) for one in prompts]
    lengths = encoder.lengths([one.text for one in composed])
    order = [
        repeated({token: len(persons[name]) for token, name in found.items()}, length, mask.shape[2])
        for found, length in zip(mentions, lengths, strict=True)
    ]
    source = torch.tensor(order, device=mask.device)

    def fuse(name: str, plain: Tensor) -> Tensor:
        fused = words.fuse(plain, persons[name].to(plain))
        return torch.lerp(plain, fused, adapter.scale * identities[name].scale)

    return with_persons(composed, mentions, source, encoder, fuse), mask.gather(
        2, source[:, None].expand(-1, mask.shape[1], -1)
    )


def with_persons(
    prompts: Sequence[ComposedPrompt],
    mentions: Sequence[Mapping[int, str]],
    source: Tensor,
    encoder: TextEncoder,
    fuse: Callable[[str, Tensor], Tensor],
) -> TextEmbeddings:
    """The text of some prompts in which ``fuse`` takes the place of class words.

    Args:
        prompts: n of them.
        mentions: of each prompt; see ``mentions_of``.
        source: int64 [n, T], which token of its text stands at each place.
        encoder: of the text.
        fuse: takes the name of a person and the text [m, D] at the tokens of a mention; gives what stands there.
    """
    embedded = encoder.embed([one.text for one in prompts], source)
    hidden = embedded.hidden.clone()
    for row, found in enumerate(mentions):
        for token, name in found.items():
            places = (source[row] == token).nonzero().flatten()
            hidden[row, places] = fuse(name, hidden[row, places])
    return TextEmbeddings(hidden, embedded.widths, embedded.pooled)


def mentions_of(prompt: WordedPrompt, persons: Mapping[str, Tensor], encoder: TextEncoder) -> dict[int, str]:
    """Whose class word ends at which token, of those who have embeddings.

    Raises:
        FeaturesError: a mention has no word.
    """
    found = {}
    for name in persons:
        if name in prompt.prompt.spans and not prompt.words[name]:
            raise FeaturesError(f"the description of {name} has no word that a person could stand for; write one")
        for word in prompt.words.get(name, ()):
            found[encoder.last_token(prompt.prompt.text, word)] = name
    return found


def repeated(copies: Mapping[int, int], used: int, length: int) -> list[int]:
    """Which token of a text stands at each place when some are there several times.

    Args:
        copies: how many times, by the token's place.
        used: tokens of the text, its start and its end counted.
        length: places.

    Raises:
        FeaturesError: there is no room.
    """
    missing = used + sum(copies.values()) - len(copies) - length
    if missing > 0 or max(copies, default=0) >= length:
        raise FeaturesError(
            f"a frame's prompt has {used} tokens, of which {len(copies)} stand for {sum(copies.values())} looks of "
            f"persons; the text encoder reads {length}: shorten the prompt by {max(missing, 1)} tokens, or give fewer "
            "references"
        )
    return [token for token in range(length) for _ in range(copies.get(token, 1))][:length]
