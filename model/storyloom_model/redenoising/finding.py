"""Finds the characters of a story between its passes: by its own maps, or in its pictures by somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from storyloom_model.decoder import Decoder
from storyloom_model.maps import ForegroundRule
from storyloom_model.redenoising.masks import CharacterFinder, masks_of_maps, masks_of_picture
from storyloom_model.redenoising.second_pass import SecondPass, begin
from storyloom_model.state import StoryState


def begin_second_passes(
    states: Sequence[StoryState], rule: ForegroundRule, finder: CharacterFinder | None, decoder: Decoder, schedule: Any
) -> None:
    """Begins the second pass of those stories that have just ended their first.

    Args:
        states: of stories that are to take a step.
        rule: how maps become masks.
        finder: sees the pictures of the first pass; None: its maps are enough.
        decoder: makes these pictures.
        schedule: the package's, for fresh solvers.
    """
    for state in states:
        second = state.second
        if second is not None and second.start is not None and state.solver.index == state.solver.steps:
            if finder is None:
                found = _by_maps(state, second, second.start.maps, rule)
            else:
                found = _by_finder(state, second, finder, decoder)
            begin(state, second, second.start, found, decoder.factor, schedule)


def _by_maps(state: StoryState, second: SecondPass, maps: Tensor, rule: ForegroundRule) -> Tensor:
    """Where maps [F, characters, h, w] show those of the regions: bool [F, K, h, w], on the CPU."""
    places = [state.job.characters.index(region.character) for region in second.plan.regions]
    return masks_of_maps(maps[:, places], rule).cpu()


def _by_finder(state: StoryState, second: SecondPass, finder: CharacterFinder, decoder: Decoder) -> Tensor:
    """Where a finder sees them: bool [F, K, h, w], on the CPU."""
    frames, _, *size = state.latents.shape
    regions = second.plan.regions
    found = torch.zeros(frames, len(regions), *size, dtype=torch.bool)
    shown = [indexes.tolist() for indexes in second.frames]
    for frame in range(frames):
        here = [place for place, indexes in enumerate(shown) if frame in indexes]
        if here:
            (picture,) = decoder.pictures(state.latents[[frame]])
            masks = finder(picture, [regions[place].description for place in here])
            found[frame, here] = masks_of_picture(masks, (size[0], size[1]))
    return found
