"""Which positions of two pictures show the same, by features of the UNet (DIFT; Tang et al. 2023). Pure functions.

G frames, (h, w) positions, N = h * w of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import foreground

_AT_ONCE = 1024
"""Positions compared at once: what this takes of memory is that times all positions of a frame."""
_OUTSIDE = 2.0
"""Distance to a position that is not in the foreground: the largest that there is."""


def smoothed(features: Tensor) -> Tensor:
    """A Gaussian of 3 by 3 with deviation 1 over every channel, zeros beyond the edge: [G, C, h, w], float32."""
    side = torch.exp(-torch.tensor([1.0, 0.0, 1.0], device=features.device) / 2)
    kernel = torch.outer(side, side) / side.sum() ** 2
    channels = features.shape[1]
    return F.conv2d(features.float(), kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def sources(features: Tensor, masks: Tensor, lends: Sequence[bool], takes: Sequence[bool]) -> Tensor:
    """From where each position of each frame takes its features.

    A position of a frame's foreground takes those of the most similar position in the foreground of any other frame
    that lends, by cosine distance, if that distance is below the threshold of Otsu's rule over all positions of the
    frame.

    Args:
        features: [G, C, h', w'], resized bilinearly to the positions.
        masks: bool [G, h, w], the foregrounds.
        lends: for each frame, whether others take from it.
        takes: for each frame, whether it takes from others.

    Returns:
        int64 [G, N], numbers of positions of all frames in one row, G * N; its own where a position takes nothing.
    """
    frames, height, width = masks.shape
    positions = height * width
    resized = F.interpolate(features.float(), size=(height, width), mode="bilinear", align_corners=False)
    vectors = F.normalize(resized.flatten(2).transpose(1, 2), dim=-1)
    inside = masks.flatten(1)
    found = torch.arange(frames * positions, device=masks.device).view(frames, positions)
    for frame in range(frames):
        lenders = [other for other in range(frames) if lends[other] and other != frame]
        if not lenders or not takes[frame]:
            continue
        best = torch.full((positions,), math.inf, device=masks.device)
        where = found[frame].clone()
        for other in lenders:
            distance, nearest = _nearest(vectors[other], inside[other], vectors[frame])
            where = torch.where(distance < best, other * positions + nearest, where)
            best = torch.minimum(distance, best)
        # Strictly below the threshold, which equal distances have not: then nothing tells what is similar.
        similar = foreground(-best[None, None])[0, 0]
        found[frame] = torch.where(inside[frame] & similar, where, found[frame])
    return found


def _nearest(lender: Tensor, inside: Tensor, taker: Tensor) -> tuple[Tensor, Tensor]:
    """For each position of the taker [N, C] the least distance to the lender's foreground, and where that is."""
    distances, places = [], []
    for part in torch.split(taker, _AT_ONCE):
        table = torch.where(inside[:, None], 1 - lender @ part.T, _OUTSIDE)
        least, place = table.min(dim=0)
        distances.append(least)
        places.append(place)
    return torch.cat(distances), torch.cat(places)
