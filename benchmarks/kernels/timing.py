"""Times on a device. One number is the median of many calls, with the L2 cache flushed before each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

FLUSH_BYTES = 256 * 2**20
"""More than any L2 cache holds."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call, and bytes that it allocated at its peak beyond what was there before."""

    milliseconds: float
    samples: tuple[float, ...]
    extra_bytes: int


def measure(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> Timing:
    """Times a call. On a CUDA device by events, so that launch gaps of the host count and waiting for it does not."""
    for _ in range(min(3, repeats)):
        call()
    if device.type != "cuda":
        samples = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            samples.append(1000 * (time.perf_counter() - started))
        return Timing(statistics.median(samples), tuple(samples), 0)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    extra = torch.cuda.max_memory_allocated(device) - before
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    event: Any = torch.cuda.Event
    events = [[event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        flush.zero_()
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    samples = [begin.elapsed_time(end) for begin, end in events]
    return Timing(statistics.median(samples), tuple(samples), extra)
