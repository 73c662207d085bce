"""Final latents as bytes, in the form of ``AnchorFrame.latents``: float32, little-endian, [C, h, w] in C order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from storyloom_model.jobs import AnchorFrame


def write_latents(latents: Tensor) -> bytes:
    """One frame's latents [C, h, w]."""
    return latents.float().cpu().contiguous().numpy().astype("<f4").tobytes()


def read_latents(anchors: Sequence[AnchorFrame], shape: tuple[int, int, int]) -> Tensor:
    """float32 [len(anchors), *shape], on the CPU."""
    values = np.frombuffer(b"".join(anchor.latents for anchor in anchors), dtype="<f4")
    return torch.from_numpy(values.astype(np.float32)).reshape(len(anchors), *shape)
