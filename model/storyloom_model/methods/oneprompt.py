"""1Prompt1Story (Liu et al., "One-Prompt-One-Story", ICLR 2025; byliutao/1Prompt1Story): one long text for all frames.

From the authors' code: the identity's prompt and all frames' prompts are one text, encoded once. For each frame, the
embeddings of the other frames' tokens are weakened and those of its own strengthened, through their singular values
together with those of all end tokens, which fill the text up (singular-value reweighting; weakened one frame after the
other, then the frame's own; each text encoder by itself). Where the text would be cut, each frame's text begins with
its own prompt and goes round through as many as fit (a circular window). Identity-preserving cross-attention: beside
this text, each layer attends to the start token and the identity's own tokens of the identity's prompt encoded alone,
in one softmax, for the prompt's branch only.

Reconstructed: the identity's prompt is what stands before the first character, where that is the same in all frames
(the style), and the descriptions of the frame's characters; a frame's prompt is the rest. Frames with the same
characters share a text, so that nobody is told of who is absent. The code attends to the identity's keys as stored from
a picture of it made before, which are those of its text. Frames keep their own noise; the code gives all the same.
Frames do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from storyloom_model.encoder import TextEmbeddings
from storyloom_model.methods.method import Method
from storyloom_model.prompts import ComposedPrompt, Span
from storyloom_model.story_text import StoryText, plain_text, prompts_of, with_negative

if TYPE_CHECKING:
    from storyloom_model.encoder import TextEncoder
    from storyloom_model.jobs import StoryJob

_WEAKEN = (0.01, 0.05)
"""alpha and beta: a singular value s becomes beta * exp(-alpha * s) * s."""
_STRENGTHEN = (-0.01, 1.0)


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """The text of one frame, in which other frames are told of.

    ``prompt`` has the places of the characters in it, ``own`` and ``others`` are the places of frames' prompts.
    ``identity`` is the beginning of the text alone, with the characters at the same places; "" where there are none.
    """

    prompt: ComposedPrompt
    identity: ComposedPrompt
    own: Span
    others: tuple[Span, ...] = ()


class OnePrompt(Method):
    """Frames that share characters are told of in one text."""

    crosses_frames: ClassVar[bool] = False

    def text(self, job: StoryJob, encoder: TextEncoder) -> StoryText:
        if not job.cross_frame:
            return plain_text(job, encoder)
        rows = long_prompts(prompts_of(job), encoder.fits)
        texts, identities = [row.prompt for row in rows], [row.identity for row in rows]
        embedded = encoder.embed([text.text for text in texts])
        hidden = torch.stack(
            [_reweighted(one, embedded.widths, row, encoder) for one, row in zip(embedded.hidden, rows, strict=True)]
        )
        told = with_negative(job, TextEmbeddings(hidden, embedded.widths, embedded.pooled), encoder)
        preserved = encoder.embed([one.text for one in identities]).hidden
        branches = 2 if job.guided else 1
        spans = [(0, len(one.text)) for one in identities]
        unseen = ~_tokens(identities, spans, encoder)
        unseen[:, 0] = False  # The start token.
        everything = torch.ones_like(unseen)  # Of the negative prompt's branch.
        own = torch.zeros_like(unseen).repeat(branches, 1)
        return StoryText(
            torch.cat([told.hidden, preserved.repeat(branches, 1, 1)], dim=1),
            told.pooled,
            torch.cat([encoder.token_mask(one, job.characters) for one in (texts, identities)], dim=2),
            torch.cat([own, torch.cat([everything, unseen] if job.guided else [unseen])], dim=1),
        )


def long_prompts(prompts: Sequence[ComposedPrompt], fits: Callable[[str], bool]) -> list[LongPrompt]:
    """The texts of frames that know of each other. A frame of nobody has its own prompt.

    Args:
        prompts: of the frames.
        fits: whether a text is short enough.
    """
    casts = [tuple(prompt.spans) for prompt in prompts]
    made: dict[int, LongPrompt] = {}
    for cast in dict.fromkeys(casts):
        places = [place for place, one in enumerate(casts) if one == cast]
        together = _together([prompts[place] for place in places], cast, fits) if cast else []
        made |= dict(zip(places, together, strict=False))
    alone = ComposedPrompt("")
    return [made.get(place) or LongPrompt(one, alone, (0, len(one.text))) for place, one in enumerate(prompts)]


def reweighted(hidden: Tensor, own: Tensor, others: Sequence[Tensor], ends: Tensor) -> Tensor:
    """Singular-value reweighting of a text's embeddings [T, D].

    Args:
        hidden: of one text encoder.
        own: bool [T], the tokens of the frame's own prompt.
        others: those of each other frame's.
        ends: those that close the text and fill it up; they are weakened and strengthened with each.
    """
    values = hidden.double()
    for tokens in others:
        values = _scaled(values, tokens | ends, *_WEAKEN)
    return _scaled(values, own | ends, *_STRENGTHEN).to(hidden.dtype)


def _scaled(values: Tensor, tokens: Tensor, alpha: float, beta: float) -> Tensor:
    left, singular, right = torch.linalg.svd(values[tokens], full_matrices=False)
    changed = values.clone()
    changed[tokens] = (left * (beta * torch.exp(-alpha * singular) * singular)) @ right
    return changed


def _together(prompts: Sequence[ComposedPrompt], cast: Sequence[str], fits: Callable[[str], bool]) -> list[LongPrompt]:
    """The texts of frames with the same characters."""
    leads = {_lead(prompt) for prompt in prompts}
    lead = leads.pop() if len(leads) == 1 else ""
    text, spans = lead, dict[str, tuple[Span, ...]]()
    for name in cast:
        start, end = prompts[0].spans[name][0]
        text += " and " if spans else (" " if text else "")
        spans[name] = ((len(text), len(text) + end - start),)
        text += prompts[0].text[start:end]
    identity = ComposedPrompt(text, spans)
    actions = [_action(prompt, lead) for prompt in prompts]
    orders = _orders(text, actions, fits)
    return [_long_prompt(identity, actions, order, own) for own, order in enumerate(orders)]


def _orders(identity: str, actions: Sequence[str], fits: Callable[[str], bool]) -> list[list[int]]:
    """For each frame, the frames that its text tells of, in order: all as they are, or as many from its own on."""
    count = len(actions)
    if fits(" ".join([identity, *actions])):
        return [list(range(count))] * count
    for size in range(count - 1, 1, -1):
        orders = [[(first + step) % count for step in range(size)] for first in range(count)]
        if all(fits(" ".join([identity, *(actions[place] for place in order)])) for order in orders):
            return orders
    return [[place] for place in range(count)]


def _long_prompt(identity: ComposedPrompt, actions: Sequence[str], order: Sequence[int], own: int) -> LongPrompt:
    text, spans = identity.text, dict[int, Span]()
    for place in order:
        text += " "
        spans[place] = (len(text), len(text) + len(actions[place]))
        text += actions[place]
    others = tuple(span for place, span in spans.items() if place != own)
    return LongPrompt(ComposedPrompt(text, identity.spans), identity, spans[own], others)


def _lead(prompt: ComposedPrompt) -> str:
    """What stands before the first character."""
    return prompt.text[: min(start for spans in prompt.spans.values() for start, _ in spans)].strip()


def _action(prompt: ComposedPrompt, lead: str) -> str:
    """A prompt without its beginning, the descriptions of its characters, and what only joins two of them."""
    pieces, position = [], 0
    for start, end in sorted(span for spans in prompt.spans.values() for span in spans):
        pieces.append(prompt.text[position:start])
        position = max(position, end)
    first, *between = pieces
    kept = ["" if lead else first, *(one for one in between if one.strip(" ,") != "and"), prompt.text[position:]]
    return " ".join(" ".join(one.strip(" ,") for one in kept).split())


def _reweighted(hidden: Tensor, widths: Sequence[int], row: LongPrompt, encoder: TextEncoder) -> Tensor:
    if not row.identity.text:
        return hidden
    spans = [row.own, (0, len(row.prompt.text)), *row.others]
    own, words, *others = _tokens([row.prompt] * len(spans), spans, encoder)
    ends = ~words
    ends[0] = False
    parts = torch.split(hidden, list(widths), dim=-1)
    return torch.cat([reweighted(part, own, others, ends) for part in parts], dim=-1)


def _tokens(prompts: Sequence[ComposedPrompt], spans: Sequence[Span], encoder: TextEncoder) -> Tensor:
    """bool [n, T]: the tokens of a place in each of n texts."""
    marked = [ComposedPrompt(one.text, {"": (span,)}) for one, span in zip(prompts, spans, strict=True)]
    return encoder.token_mask(marked, [""])[:, 0]
