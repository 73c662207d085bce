"""Regions: in which part of a picture the identity of each character acts. Pure functions of maps."""

from __future__ import annotations

import torch
from torch import Tensor


def shares(maps: Tensor, present: Tensor) -> Tensor:
    """How much of each position belongs to each character, by the squares of the maps.

    Squares part the characters more clearly than the maps do, and go from one to the other without an edge. Where no
    map says anything, those who are present share alike.

    Args:
        maps: [S, K, N], at least 0; of those who are not present it does not matter.
        present: bool [S, K], the characters that are in each row.

    Returns:
        [S, K, N] in [0, 1]. At each position the shares of those present sum to 1; those of others are 0.
    """
    if maps.shape[1] == 0:
        return maps
    seen = torch.where(present[..., None], maps, 0.0)
    peak = seen.amax(dim=1, keepdim=True)
    known = peak >= torch.finfo(maps.dtype).tiny
    # Of the highest at each position, so that the squares of faint maps do not vanish.
    relative = torch.where(known, seen / torch.where(known, peak, 1.0), present[..., None].to(maps.dtype))
    squares = relative.square()
    return squares / squares.sum(dim=1, keepdim=True).clamp(min=1.0)


def stream_regions(of_characters: Tensor, owner: Tensor) -> Tensor:
    """The region of each identity stream.

    Args:
        of_characters: [R, K, N], as of ``shares``.
        owner: int64 [R, C], the character in whose share each stream acts; -1: everywhere.

    Returns:
        [R, C, N].
    """
    rows, _, positions = of_characters.shape
    choices = torch.cat([of_characters.new_ones(rows, 1, positions), of_characters], dim=1)
    return choices.gather(1, (owner + 1)[..., None].expand(-1, -1, positions))
