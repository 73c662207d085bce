"""From prompts to text embeddings and to the tokens of each character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from storyloom_model.prompts import ComposedPrompt, token_flags


class TextEncoder:
    """A CLIP tokenizer and text encoder. Text beyond the tokenizer's length is cut."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer = tokenizer
        self._model = model

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The last hidden states, [len(texts), T, D], in the model's dtype."""
        ids = self._tokenize(texts, return_tensors="pt")["input_ids"]
        hidden: Tensor = self._model(ids.to(self._model.device))[0]
        return hidden

    def token_mask(self, prompts: Sequence[ComposedPrompt], characters: Sequence[str]) -> Tensor:
        """bool [len(prompts), len(characters), T], True where a token is part of a character's description."""
        tokenized = self._tokenize([prompt.text for prompt in prompts], return_offsets_mapping=True)
        flags = [
            [token_flags(offsets, prompt.spans.get(name, ())) for name in characters]
            for offsets, prompt in zip(tokenized["offset_mapping"], prompts, strict=True)
        ]
        shape = (len(prompts), len(characters), self._tokenizer.model_max_length)
        return torch.tensor(flags, dtype=torch.bool, device=self._model.device).reshape(shape)

    def _tokenize(self, texts: Sequence[str], **options: Any) -> Any:
        length = self._tokenizer.model_max_length
        return self._tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, **options)
