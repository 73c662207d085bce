"""What identity adapters make tokens with, for each kind of stream maker: features of references in, tokens out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from storyloom_export.components import Exportable
from storyloom_model.identity.adapter import StreamMaker
from storyloom_model.identity.published.makers import ReferenceTokens
from storyloom_model.identity.storymaker import StoryMakerStreams
from storyloom_model.identity.storynizor import StorynizorInjector

_MOST_REFERENCES = 63
_MOST_STATES = 4096


def has_resampler(maker: StreamMaker) -> bool:
    """Whether ``resampler`` knows the maker's kind."""
    return isinstance(maker, StorynizorInjector | ReferenceTokens | StoryMakerStreams)


def resampler(maker: StreamMaker) -> Exportable:
    """The resampler of an adapter. B references of one character -> ``tokens`` of each, [B, n, D]; of StoryMaker, whose
    tokens know their place among the characters of a frame: a reference of each of B characters -> the background's
    tokens and theirs, [(B + 1) * n, D].

    Raises:
        ValueError: it is of a kind that this export does not know.
    """
    match maker:
        case StorynizorInjector():
            widths = {"face": maker.sizes.face_dim, "states": maker.sizes.state_dim}
            return _exportable(maker, widths, _MOST_REFERENCES)
        case ReferenceTokens():
            widths = {field: _width(maker.projection, field) for field in maker.reads}
            return _exportable(maker.projection, widths, _MOST_REFERENCES)
        case StoryMakerStreams():
            sizes = maker.resampler.sizes
            widths = {"face": sizes.face, "face_states": sizes.states, "character_states": sizes.states}
            return _exportable(maker.resampler, widths, sizes.places)
    raise ValueError(f"stream makers of the kind {type(maker).__name__} cannot be exported")


class _Resampler(nn.Module):
    """A network whose inputs have names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **inputs: Tensor) -> Tensor:
        tokens: Tensor = self.network(*inputs.values())
        return tokens


def _exportable(network: nn.Module, widths: Mapping[str, int], most: int) -> Exportable:
    """Inputs whose names end in "states" are [B, S, width], the others [B, width]; B is free up to ``most``."""
    draw, like = torch.Generator().manual_seed(0), next(network.parameters())
    references, states = Dim("references", max=most), Dim("states", max=_MOST_STATES)
    inputs, free = {}, {}
    for name, width in widths.items():
        of_states = name.endswith("states")
        shape = (min(2, most), *((5,) if of_states else ()), width)
        inputs[name] = torch.randn(shape, generator=draw).to(like)
        sizes: dict[int, Any] = {0: references} if most > 1 else {}
        free[name] = sizes | ({1: states} if of_states else {})
    return Exportable(_Resampler(network), inputs, free, ("tokens",), "network.")


def _width(projection: nn.Module, field: str) -> int:
    """Of what a projection reads: the inputs of the first layer that it goes through."""
    reads_states = field.endswith("_states") and hasattr(projection, "perceiver_resampler")
    part: Any = projection.perceiver_resampler if reads_states else projection
    layer = next(module for module in part.modules() if isinstance(module, nn.Linear))
    return layer.in_features
