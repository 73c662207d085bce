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


def part_shares(maps: Tensor, present: Tensor, part_of: Tensor) -> Tensor:
    """How much of each position belongs to each character and to each part of a character.

    In rows that have parts, a position is its strongest character's alone, so that no part reaches into somebody else.
    Of that, a part has as much as its map is strong there, compared with its own peak within the character and with
    the character's other parts (by squares, as characters share); what no part claims stays with the character.

    Args:
        maps, present: as of ``shares``, of characters and of parts, K in all.
        part_of: int64 [S, K], the place of the character that each is a part of; -1 for characters.

    Returns:
        [S, K, N] in [0, 1]; those of a character and its parts sum to its share.
    """
    parts = present & (part_of >= 0)
    own = shares(maps, present & (part_of < 0))
    strongest = (own == own.amax(dim=1, keepdim=True)) & own.ne(0)
    alone = strongest.to(own.dtype) / strongest.sum(dim=1, keepdim=True).clamp(min=1)
    own = torch.where((part_of >= 0).any(dim=1)[:, None, None], alone, own)
    # [S, K, K], 1 where the first is a part of the second: sums by index have no fixed order on GPUs, products have.
    belongs = (part_of[..., None] == torch.arange(part_of.shape[1], device=part_of.device)).to(maps.dtype)
    within = torch.where(parts[..., None], maps * (belongs @ own), 0.0)
    peak = within.amax(dim=-1, keepdim=True)
    strength = within / peak.clamp(min=torch.finfo(maps.dtype).tiny)
    squares = strength.square()
    together = belongs @ (belongs.transpose(1, 2) @ squares)
    weight = strength * squares / together.clamp(min=torch.finfo(maps.dtype).tiny)
    left = 1 - (belongs.transpose(1, 2) @ weight).clamp(max=1)
    return torch.where(parts[..., None], (belongs @ own) * weight, own * left)


def stream_regions(of_characters: Tensor, owner: Tensor) -> Tensor:
    """The region of each identity stream.

    Args:
        of_characters: [R, K, N], as of ``shares`` or ``part_shares``.
        owner: int64 [R, C], the character or part in whose share each stream acts; -1: everywhere.

    Returns:
        [R, C, N].
    """
    rows, _, positions = of_characters.shape
    choices = torch.cat([of_characters.new_ones(rows, 1, positions), of_characters], dim=1)
    return choices.gather(1, (owner + 1)[..., None].expand(-1, -1, positions))
