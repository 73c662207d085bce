"""The attribute reader, for ``storyloom-export verify --reader benchmarks.export.attributes:read``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.attributes import Reading
from benchmarks.quality.network import WEIGHTS, Reader


def read(pictures: NDArray[np.uint8]) -> list[Reading]:
    """Pictures [n, h, w, 3] of the built-in model -> what each shows."""
    return Reader.load(WEIGHTS).read(pictures)
