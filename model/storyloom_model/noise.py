"""Seeds and noise, keyed by story and frame and never by the place in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection on 64-bit integers that flips half the bits."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def frame_seed(story_seed: int, index: int) -> int:
    """Derives the seed of a frame from its story's seed and its index.

    The same on every machine and in every version. Frames of one story never share a seed.

    Returns:
        An integer from 0 to 2**64 - 1.
    """
    return derived_seed(story_seed, index)


def derived_seed(seed: int, *places: int) -> int:
    """A number that a seed and places decide, such as a step and a layer, and nothing else.

    Returns:
        An integer from 0 to 2**64 - 1, each as likely as any other.
    """
    for place in places:
        seed = _mix((_mix(seed & _MASK) + (place + 1) * _GOLDEN) & _MASK)
    return seed


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Draws standard normal noise for each frame from that frame's seed alone.

    Drawn on the CPU, since generators of different devices give different numbers.

    Args:
        seeds: one seed per frame, 0 to 2**64 - 1.
        shape: of one frame's latent, such as (C, h, w).

    Returns:
        float32 [len(seeds), *shape], on the CPU.
    """
    import torch  # Not at the top: a process that only derives seeds must not load torch.

    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws) if draws else torch.zeros(0, *shape)
