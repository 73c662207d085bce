"""The text of a story's rows, as the UNet takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from storyloom_model.encoder import TextEmbeddings, TextEncoder
from storyloom_model.prompts import ComposedPrompt

if TYPE_CHECKING:
    from storyloom_model.jobs import StoryJob


@dataclass(frozen=True, slots=True, eq=False)
class StoryText:
    """The text of R rows, the negative prompt's first if the story is guided; G rows of a branch, K characters.

    ``hidden`` is [R, T, D], ``pooled`` [R, P] in the form of SDXL, else None. ``token_mask`` is bool [G, K, T], True
    where a token is part of a character's description. ``unseen`` is bool [R, T], True for tokens that a row's
    cross-attention leaves out; None: it leaves out none.
    """

    hidden: Tensor
    pooled: Tensor | None
    token_mask: Tensor
    unseen: Tensor | None = None


def prompts_of(job: StoryJob) -> list[ComposedPrompt]:
    """The prompts of a branch's rows: frames, then anchors."""
    return [*(frame.prompt for frame in job.frames), *(anchor.prompt for anchor in job.anchors)]


def with_prompts(job: StoryJob, prompts: Sequence[ComposedPrompt]) -> StoryJob:
    """The job with other prompts, in the order of ``prompts_of``."""
    frames, anchors = prompts[: len(job.frames)], prompts[len(job.frames) :]
    return replace(
        job,
        frames=tuple(replace(frame, prompt=prompt) for frame, prompt in zip(job.frames, frames, strict=True)),
        anchors=tuple(replace(anchor, prompt=prompt) for anchor, prompt in zip(job.anchors, anchors, strict=True)),
    )


def plain_text(job: StoryJob, encoder: TextEncoder) -> StoryText:
    """Every row has its own prompt."""
    prompts = prompts_of(job)
    embedded = with_negative(job, encoder.embed([prompt.text for prompt in prompts]), encoder)
    return StoryText(embedded.hidden, embedded.pooled, encoder.token_mask(prompts, job.characters))


def with_negative(job: StoryJob, text: TextEmbeddings, encoder: TextEncoder) -> TextEmbeddings:
    """The rows of a branch -> all rows: those of the negative prompt come first, if the story is guided."""
    if not job.guided:
        return text
    negative = encoder.embed([job.negative_prompt])
    hidden, pooled = torch.cat([negative.hidden.expand_as(text.hidden), text.hidden]), text.pooled
    if pooled is not None and negative.pooled is not None:
        pooled = torch.cat([negative.pooled.expand_as(pooled), pooled])
    return TextEmbeddings(hidden, text.widths, pooled)
