"""Finds the characters of a story between its passes: by its own maps, or in its pictures by somebody else.

What finds characters by their words cannot tell two girls. The maps can: they say which of them is whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from storyloom_model.decoder import Decoder
from storyloom_model.identity.class_words import word_for
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.maps import ForegroundRule
from storyloom_model.package import ModelPackage, PackageError
from storyloom_model.redenoising.masks import CharacterFinder, masks_of_maps, masks_of_picture, to_owners
from storyloom_model.redenoising.second_pass import SecondPass, begin
from storyloom_model.state import StoryState


def load_finder(package: ModelPackage, device: str) -> CharacterFinder | None:
    """What a package names to find characters by; None: it names nothing.

    Raises:
        PackageError: it is not usable.
    """
    folders = package.manifest.character_finder
    if folders is None:
        return None
    from storyloom_model.redenoising.word_finder import load_word_finder  # Takes seconds.

    try:
        return load_word_finder(package.folder, folders, device)
    except EncodersError as error:
        raise PackageError(f"character_finder: {error}") from error


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
                found = _by_finder(state, second, second.start.maps, finder, decoder)
            begin(state, second, second.start, found, decoder.factor, schedule)


def missing(state: StoryState, frame: int) -> tuple[str, ...]:
    """Characters of a frame that has been through a second pass to whom that gave nothing: they had no place in it."""
    second = state.second
    if second is None or second.masks is None:
        return ()
    nowhere = second.masks.distances[frame].isinf().flatten(1).all(dim=1).tolist()
    regions = zip(second.plan.regions, second.frames, nowhere, strict=True)
    return tuple(region.character for region, frames, gone in regions if gone and frame in frames.tolist())


def _by_maps(state: StoryState, second: SecondPass, maps: Tensor, rule: ForegroundRule) -> Tensor:
    """Where maps [F, characters, h, w] show those of the regions: bool [F, K, h, w], on the CPU."""
    return masks_of_maps(maps[:, _places(state, second)], rule).cpu()


def _by_finder(
    state: StoryState, second: SecondPass, maps: Tensor, finder: CharacterFinder, decoder: Decoder
) -> Tensor:
    """Where a finder sees them: bool [F, K, h, w], on the CPU.

    It is asked for everybody in a frame, those without a region too, so that these are not taken for others. Maps
    [F, characters, h, w] tell characters apart where words do not.
    """
    frames, _, *size = state.latents.shape
    names = state.job.characters
    found = torch.zeros(frames, len(names), *size, dtype=torch.bool)
    for frame in sorted({index for indexes in second.frames for index in indexes.tolist()}):
        prompt = state.job.frames[frame].prompt
        here = [place for place, name in enumerate(names) if name in prompt.spans]
        descriptions = [prompt.text[slice(*prompt.spans[names[place]][0])] for place in here]
        (picture,) = decoder.pictures(state.latents[[frame]])
        masks = masks_of_picture(finder(picture, descriptions), (size[0], size[1]))
        own = maps[frame, here].float().cpu()
        found[frame, here] = to_owners(masks, own, [word_for(each) for each in descriptions])
    return found[:, _places(state, second)]


def _places(state: StoryState, second: SecondPass) -> list[int]:
    """Where the characters of the regions are among those of the story."""
    return [state.job.characters.index(region.character) for region in second.plan.regions]
