"""StoryMaker's adapter for SDXL (Zhou et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.published.layers import AttentionLayer, read_layers
from storyloom_model.identity.published.parts import loaded, split
from storyloom_model.identity.storymaker import StoryMakerResampler, StoryMakerSizes, StoryMakerStreams

SCALE = 0.8
LOW_RANK_SCALE = 0.8
"""What the authors multiply the identity attention and the low-rank changes by."""


def read_storymaker(name: str, weights: Mapping[str, Tensor], layers: Sequence[AttentionLayer]) -> IdentityAdapter:
    """Makes an adapter of the weights of a file.

    Args:
        name: of the adapter.
        weights: with names that begin with "image_proj_model." and "ip_adapter.".
        layers: of the UNet that it is for.

    Raises:
        PackageError: the file is for another base model, or its weights are not StoryMaker's.
    """
    image, attention = split(name, weights, "image_proj_model.", "ip_adapter.")
    resampler = loaded(name, lambda own: StoryMakerResampler(StoryMakerSizes.of(own)), image)
    found, low_rank = read_layers(name, attention, layers, resampler.sizes.width, LOW_RANK_SCALE)
    return IdentityAdapter(name, StoryMakerStreams(resampler), found, SCALE, low_rank)
