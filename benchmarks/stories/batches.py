"""Pictures and texts through a network, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.stories.similarity import Vectors

BATCH = 32
Item = TypeVar("Item")


def in_batches(embed: Callable[[Sequence[Item]], Tensor], items: Sequence[Item]) -> Vectors:
    """Embeds items in batches of 32: float32 [n, d] on the CPU, rows of length 1.

    Raises:
        ValueError: no items.
    """
    if not items:
        raise ValueError("there is nothing to embed; give at least one picture or text")
    parts = [embed(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
    embeddings: Vectors = F.normalize(torch.cat(parts).float().cpu()).numpy().astype(np.float32, copy=False)
    return embeddings
