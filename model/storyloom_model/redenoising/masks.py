"""Where the second pass acts: the masks of a frame's characters, and how they grow. Pure functions of tensors.

F frames, K characters, (h, w) latent positions. Distances are in pixels of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import foreground
from storyloom_model.maps import ForegroundRule

CharacterFinder: TypeAlias = Callable[[NDArray[np.uint8], Sequence[str]], NDArray[np.bool_]]
"""Finds characters in a picture uint8 [H, W, 3] by their descriptions: bool [K, H, W], all False for one that is not
there; see ``word_finder``."""


@dataclass(frozen=True, slots=True, eq=False)
class GrowingMasks:
    """The masks of all frames, each as far as it is to the positions around it.

    ``distances`` is float32 [F, K, h, w]: 0 in the mask itself, infinite where a frame does not show the character.
    ``order`` is int64 [F, K], the characters of each frame in the order in which they take what is free.
    """

    distances: Tensor
    order: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.distances.nbytes + self.order.nbytes

    def grown(self, radius: float) -> Tensor:
        """The masks, each larger by ``radius`` pixels: bool [F, K, h, w]. No two of a frame overlap.

        Nobody grows into another's own mask; of what is free, the smaller mask takes first.
        """
        places = self.order[..., None, None].expand_as(self.distances)
        ordered = self.distances.gather(1, places)
        own = ordered == 0
        wanted = own | ((ordered <= radius) & ~own.any(dim=1, keepdim=True))
        first = wanted & (wanted.cumsum(dim=1) == 1)
        return torch.zeros_like(first).scatter(1, places, first)


def arrange(masks: Tensor, margin: float, factor: int) -> GrowingMasks:
    """Makes the masks of a story ready to act.

    In each frame, from the smallest mask to the largest: what an earlier one has is taken away, the largest connected
    part is kept, and it grows by the margin into what no other has.

    Args:
        masks: bool [F, K, h, w], as they were found.
        margin: in pixels.
        factor: pixels of a latent position.
    """
    order = masks.flatten(2).sum(dim=-1).argsort(dim=1, stable=True)
    kept = torch.zeros_like(masks)
    for frame, places in enumerate(order.tolist()):
        taken = torch.zeros_like(masks[frame, 0])
        for place in places:
            kept[frame, place] = largest_part(masks[frame, place] & ~taken)
            taken |= kept[frame, place]
    widened = GrowingMasks(_all_distances(kept, factor), order).grown(margin)
    return GrowingMasks(_all_distances(widened, factor), order)


def largest_part(mask: Tensor) -> Tensor:
    """The largest connected part of a mask bool [h, w], corners counted as connected; of two as large, the later one.

    Every position takes the highest number around it until nothing changes.
    """
    labels = torch.arange(1, mask.numel() + 1, dtype=torch.float32, device=mask.device).view_as(mask) * mask
    while True:
        spread = F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0] * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    sizes = torch.bincount(labels[mask].long(), minlength=1)
    return mask & (labels == _last_largest(sizes))


def distances(mask: Tensor, factor: int) -> Tensor:
    """From every position to the nearest of a mask bool [h, w], centre to centre: float32 [h, w], in pixels.

    Exact, one axis after the other (Felzenszwalb and Huttenlocher 2012), without their lower envelope: latents are
    small.
    """
    rows, columns = (_squared_differences(length, mask.device) for length in mask.shape)
    here = torch.where(mask, 0.0, math.inf)
    along_columns = (rows[:, :, None] + here[None]).amin(dim=1)
    squared = (columns[None] + along_columns[:, None, :]).amin(dim=2)
    return squared.sqrt() * factor


def masks_of_maps(maps: Tensor, rule: ForegroundRule) -> Tensor:
    """Where cross-attention maps [F, K, h, w] say that characters are: bool, the same shape."""
    return foreground(maps.flatten(2), rule.method, rule.value).view_as(maps)


def masks_of_picture(found: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """Masks of a picture bool [K, H, W] at the latents' size, a position being in one when most of its pixels are."""
    return F.adaptive_avg_pool2d(torch.from_numpy(found).float(), size) > 0.5


def to_owners(masks: Tensor, maps: Tensor, words: Sequence[str]) -> Tensor:
    """Gives masks that were found by the same word to whose they are.

    Of characters with one word, the pair of a mask and a character comes first in which the character has the largest
    share of their maps; then the rest likewise. What nobody is left for stays empty.

    Args:
        masks: bool [K, h, w], in any order within a word; empty for what was not found.
        maps: cross-attention of each character, float32 [K, h, w].
        words: of each character.
    """
    owned = masks.clone()
    for word in dict.fromkeys(words):
        alike = [place for place, other in enumerate(words) if other == word]
        if len(alike) < 2:
            continue
        shares = maps[alike] / maps[alike].sum(dim=0).clamp_min(torch.finfo(maps.dtype).tiny)
        seen = [place for place in alike if masks[place].any()]
        owned[alike] = False
        free = list(range(len(alike)))
        pairs = [(float(shares[one][masks[mask]].mean()), -one, -mask) for one in free for mask in seen]
        for _, one, mask in sorted(pairs, reverse=True):
            if -one in free and -mask in seen:
                owned[alike[-one]] = masks[-mask]
                free.remove(-one)
                seen.remove(-mask)
    return owned


def _all_distances(masks: Tensor, factor: int) -> Tensor:
    of_each = [distances(mask, factor) for mask in masks.flatten(0, 1)]
    return torch.stack(of_each).view(masks.shape)


def _squared_differences(length: int, device: torch.device) -> Tensor:
    places = torch.arange(length, dtype=torch.float32, device=device)
    return (places[:, None] - places[None]).square()


def _last_largest(sizes: Tensor) -> int:
    return int(len(sizes) - 1 - sizes.flip(0).argmax())
