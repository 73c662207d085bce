"""How far two results are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MOST_PSNR = 120.0
"""What equal pictures get, whose PSNR has no bound."""


@dataclass(frozen=True)
class Difference:
    """Of one output: the largest and the mean absolute error, and the largest absolute value of the reference."""

    name: str
    largest: float
    mean: float
    scale: float


def difference(name: str, ours: Tensor, reference: Tensor) -> Difference:
    """Compares two tensors of one shape in float64."""
    off = (ours.double() - reference.double()).abs()
    return Difference(name, off.max().item(), off.mean().item(), reference.double().abs().max().item())


def psnr(ours: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, in dB; at most ``MOST_PSNR``."""
    error = float(np.mean(np.square(ours.astype(np.float64) - reference.astype(np.float64))))
    return MOST_PSNR if error == 0 else min(MOST_PSNR, 10 * math.log10(255**2 / error))
