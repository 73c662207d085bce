"""From prompts to text embeddings and to the tokens of each character."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storyloom_model.prompts import ComposedPrompt, Span, check_prompt, token_flags


@dataclass(frozen=True, slots=True, eq=False)
class TextEmbeddings:
    """What is known of n texts: ``hidden`` is [n, T, D]; ``pooled`` [n, P] in the form of SDXL, else None.

    ``widths`` sum to D: those of the encoders whose outputs are side by side.
    """

    hidden: Tensor
    widths: tuple[int, ...]
    pooled: Tensor | None = None


class TextEncoder:
    """A CLIP tokenizer and text encoder. Text beyond the tokenizer's length is cut.

    Args:
        tokenizer: of the text encoder.
        model: its last hidden states are the text.
        second: in the form of SDXL another tokenizer and text encoder; the text is then the last hidden states but one
            of both, side by side, and what the second makes of the text as a whole.
    """

    def __init__(self, tokenizer: Any, model: Any, second: tuple[Any, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._second = second

    def embed(self, texts: Sequence[str], source: Tensor | None = None) -> TextEmbeddings:
        """The texts in the model's dtype.

        Args:
            texts: n of them.
            source: int64 [n, T], which token of its text is read at each place, by both encoders; None: its own.
        """
        ids = self._ids(self._tokenizer, texts, source)
        if self._second is None:
            hidden = self._model(ids)[0]
            return TextEmbeddings(hidden, (hidden.shape[-1],))
        tokenizer, model = self._second
        first = self._model(ids, output_hidden_states=True).hidden_states[-2]
        found = model(self._ids(tokenizer, texts, source), output_hidden_states=True)
        both = [first, found.hidden_states[-2]]
        return TextEmbeddings(torch.cat(both, dim=-1), tuple(one.shape[-1] for one in both), found.text_embeds)

    def fits(self, text: str) -> bool:
        """Whether nothing of a text is cut."""
        return check_prompt(self._tokenizer, text, self._tokenizer.model_max_length) is None

    def token_mask(self, prompts: Sequence[ComposedPrompt], characters: Sequence[str]) -> Tensor:
        """bool [len(prompts), len(characters), T], True where a token is part of a character's description."""
        spans = [[prompt.spans.get(name, ()) for name in characters] for prompt in prompts]
        return self.span_mask([prompt.text for prompt in prompts], spans)

    def span_mask(self, texts: Sequence[str], spans: Sequence[Sequence[Sequence[Span]]]) -> Tensor:
        """bool [len(texts), K, T], True where a token is in one of the K-th spans of its text; K of them for each."""
        tokenized = _tokenize(self._tokenizer, list(texts), return_offsets_mapping=True)
        flags = [
            [token_flags(offsets, one) for one in of_text]
            for offsets, of_text in zip(tokenized["offset_mapping"], spans, strict=True)
        ]
        shape = (len(texts), len(spans[0]), self._tokenizer.model_max_length)
        return torch.tensor(flags, dtype=torch.bool, device=self._model.device).reshape(shape)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text that are read, its start and its end counted."""
        masks = _tokenize(self._tokenizer, texts, return_attention_mask=True)["attention_mask"]
        return [sum(mask) for mask in masks]

    def last_token(self, text: str, span: Span) -> int:
        """The place of the last token of a part of a text; beyond T if it is not read."""
        offsets = self._tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        flags = token_flags(offsets, [span])
        return max(place for place, flag in enumerate(flags) if flag)

    def _ids(self, tokenizer: Any, texts: Sequence[str], source: Tensor | None = None) -> Tensor:
        ids: Tensor = _tokenize(tokenizer, texts, return_tensors="pt")["input_ids"]
        own = ids.to(self._model.device)
        return own if source is None else own.gather(1, source)


def _tokenize(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, **options
    )
