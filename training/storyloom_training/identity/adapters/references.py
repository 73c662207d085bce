"""Which picture of a person each frame of a training group is conditioned on. Pure functions of what is seen where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

NOBODY = -1
"""Stands where a frame would, for people who are not there or whose face no allowed frame shows."""


def shuffled_references(visible: Tensor, frames: Sequence[int], draw: torch.Generator) -> Tensor:
    """Storynizor's Shuffling Reference Strategy (equations 10 to 12): never a frame's own picture.

    Args:
        visible: bool [frames of the group, people], where a face is seen.
        frames: the frames that are trained on.
        draw: the source of chance.

    Returns:
        int64 [len(frames), people, 1]: a frame of the group for each frame and person, or NOBODY.
    """
    chosen = torch.full((len(frames), visible.shape[1], 1), NOBODY)
    for row, frame in enumerate(frames):
        for person in range(visible.shape[1]):
            others = [other for other in visible[:, person].nonzero().flatten().tolist() if other != frame]
            if others:
                chosen[row, person, 0] = others[int(torch.randint(len(others), (), generator=draw))]
    return chosen


def own_references(visible: Tensor, frames: Sequence[int]) -> Tensor:
    """As IP-Adapter trains: each frame's own picture.

    Returns:
        int64 [len(frames), people, 1].
    """
    return torch.where(visible[list(frames)], torch.tensor(frames)[:, None], NOBODY)[..., None]


def several_references(visible: Tensor, frames: Sequence[int], draw: torch.Generator) -> Tensor:
    """As PhotoMaker trains: one to all of the other frames that are trained on, each as often as any number of them.

    Returns:
        int64 [len(frames), people, len(frames) - 1], NOBODY behind the last; one place at least.
    """
    chosen = torch.full((len(frames), visible.shape[1], max(1, len(frames) - 1)), NOBODY)
    for row, frame in enumerate(frames):
        for person in range(visible.shape[1]):
            others = [other for other in frames if visible[other, person] and other != frame]
            if others:
                count = 1 + int(torch.randint(len(others), (), generator=draw))
                order = torch.randperm(len(others), generator=draw)[:count]
                chosen[row, person, :count] = torch.tensor(others)[order]
    return chosen


def stacked_references(visible: Tensor, frames: Sequence[int]) -> Tensor:
    """The paper's ablation: all faces of the frames that are trained on, for each of them; its own among them.

    Returns:
        int64 [len(frames), people, len(frames)]. Where fewer frames show the face, they come round again.
    """
    chosen = torch.full((len(frames), visible.shape[1], len(frames)), NOBODY)
    for person in range(visible.shape[1]):
        seen = [frame for frame in frames if visible[frame, person]]
        if seen:
            chosen[:, person] = torch.tensor(list(islice(cycle(seen), len(frames))))
    return chosen
