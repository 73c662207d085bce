"""The text of a batch as the UNet reads it, and whom its tokens speak of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from storyloom_training.base import TextToImage
from storyloom_training.identity.adapters.batches import IdentityBatch


@dataclass(frozen=True)
class Said:
    """`text` float [rows, tokens, width]; `masks` bool [rows, people, tokens], the tokens of each person."""

    text: Tensor
    masks: Tensor


@torch.no_grad()
def said_plainly(model: TextToImage, tokenizer: CLIPTokenizer, batch: IdentityBatch) -> Said:
    """The captions as they are."""
    text = model.encode(tokenizer, batch.texts)
    return Said(text, batch.token_masks(tokenizer, text.shape[1]))
