"""Identity streams as inputs of the UNet's graph: keys and values of every layer that reads them, and who acts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from storyloom_export.artefact import DTYPES, TensorRecord
from storyloom_model.identity.streams import IdentityStreams

PREFIX = "identity_"
"""What the names of these inputs begin with. ``collate`` has a dot where they have an underscore."""

_MOST = 4096


def example_streams(widths: Sequence[int], rows: int, like: Tensor) -> dict[str, Tensor]:
    """Streams of ``rows`` to trace with, for layers of these widths, with the dtype and device of ``like``."""
    tokens, streams, layers = 3, 2, {}
    for layer, width in enumerate(widths):
        for part in ("key", "value"):
            layers[f"{PREFIX}{part}_{layer}"] = like.new_zeros(rows, tokens, width)
    ends = torch.full((rows, streams), tokens, dtype=torch.int32, device=like.device)
    scale = torch.ones(rows, streams, device=like.device)
    return layers | {f"{PREFIX}ends": ends, f"{PREFIX}scale": scale, f"{PREFIX}owner": torch.zeros_like(ends).long()}


def free_sizes(names: Iterable[str], row: Any) -> dict[str, dict[int, Any]]:
    """What is free in the inputs of these names: ``row``, and the tokens or the streams of a row."""
    tokens, streams = Dim("identity_tokens", max=_MOST), Dim("streams", max=_MOST)
    per_layer = (f"{PREFIX}key", f"{PREFIX}value")
    return {name: {0: row, 1: tokens if name.startswith(per_layer) else streams} for name in names}


def streams_of(inputs: Mapping[str, Tensor]) -> IdentityStreams:
    """The streams of inputs by their names."""
    layers = sum(name.startswith(f"{PREFIX}key_") for name in inputs)
    keys_values = [(inputs[f"{PREFIX}key_{layer}"], inputs[f"{PREFIX}value_{layer}"]) for layer in range(layers)]
    return IdentityStreams(keys_values, *(inputs[PREFIX + name] for name in ("ends", "scale", "owner")))


def no_streams(inputs: Iterable[TensorRecord], rows: int, device: torch.device) -> dict[str, Tensor]:
    """For those of a graph's inputs that are streams: room for one token of one stream, which nothing is in."""
    return {
        one.name: torch.zeros(rows, 1, *map(int, one.shape[2:]), dtype=DTYPES[one.dtype], device=device)
        for one in inputs
        if one.name.startswith(PREFIX)
    }
