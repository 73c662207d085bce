"""Where the tensors of a session lie: on the CPU or on one GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DeviceMemory:
    """Memory of a device, as runtimes want it described. ``kind`` is "cpu" or "cuda"."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = device.type
        self.index = device.index or 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """New memory for a tensor.

        Raises:
            torch.OutOfMemoryError: the device has none left.
        """
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def wait(self) -> None:
        """Returns when all that torch was told to do is done: a runtime with a stream of its own may read then."""
        if self.kind == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def stream(self) -> int:
        """The handle of the stream that torch works on; work put there runs in order with torch's."""
        return int(torch.cuda.current_stream(self.device).cuda_stream) if self.kind == "cuda" else 0
