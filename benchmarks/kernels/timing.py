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
FEWEST = 3
"""Calls that are timed however long they take, where so many are asked for."""
MOST_SECONDS = 1.0
"""For the calls of one measurement, beyond the fewest."""
LONGEST_HEAD_START = 5e-3
CYCLES_PER_SECOND = 2e9
"""Of a GPU's clock, roughly."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call, and bytes that it allocated at its peak beyond what was there before."""

    milliseconds: float
    samples: tuple[float, ...]
    extra_bytes: int


def measure(call: Callable[[], Any], device: torch.device, repeats: int = 20) -> Timing:
    """Times a call: on a CUDA device the time of the device, by events.

    The device is kept busy before each call for as long as the host takes to launch it, so that the host's launches do
    not count, as they do not in a captured graph. Where the call makes the host wait for the device, that counts.
    """
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
    started = time.perf_counter()
    call()
    launching = time.perf_counter() - started
    torch.cuda.synchronize(device)
    whole = time.perf_counter() - started
    extra = torch.cuda.max_memory_allocated(device) - before
    repeats = min(repeats, max(FEWEST, int(MOST_SECONDS / whole)))
    head_start = int(min(2 * launching, LONGEST_HEAD_START) * CYCLES_PER_SECOND)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    event: Any = torch.cuda.Event
    events = [[event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        flush.zero_()
        torch.cuda._sleep(head_start)  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    samples = [begin.elapsed_time(end) for begin, end in events]
    return Timing(statistics.median(samples), tuple(samples), extra)
