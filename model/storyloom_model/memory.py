"""Device memory: what ran out, how much a step took, how much there is."""

from __future__ import annotations

import torch

_WORDS = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""In the messages of the libraries that raise plain RuntimeErrors: CUDA's own, torch's CPU allocator, cuBLAS, cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device: the same work may pass with fewer rows."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def take_peak_bytes(device: torch.device) -> int | None:
    """The most memory that torch had in use at once since the last call; None where nobody counts it."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def memory_bytes(device: torch.device) -> int | None:
    """The memory of the device in all; None where it is the machine's."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
