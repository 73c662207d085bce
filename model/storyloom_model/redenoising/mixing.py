"""What a step of the second pass predicts. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mix(cached: Tensor, regions: Sequence[tuple[Tensor, Tensor]], masks: Tensor) -> Tensor:
    """The first pass outside the masks, each character's own prediction inside its mask.

    The paper mixes the predictions of each guidance branch and guides what comes of it. Guidance is linear and the
    masks are those of both branches, so that mixing what was guided is the same with one prediction kept for each step
    instead of two.

    Args:
        cached: what the first pass predicted at this step, [F, C, h, w], guidance applied.
        regions: of each character the indexes of its frames, int64 [n], and what was predicted for it there,
            [n, C, h, w], guidance applied.
        masks: bool [F, K, h, w], in the order of the regions; no two of a frame overlap.
    """
    mixed = cached.clone()
    for place, (frames, values) in enumerate(regions):
        mixed[frames] = torch.where(masks[frames, place, None], values, mixed[frames])
    return mixed
