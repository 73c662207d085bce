"""What the attention layers of a UNet need of a published file, and whether they find it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor

from storyloom_model.identity.adapter import LayerProjections, LowRank
from storyloom_model.package import PackageError

_BASES = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}
_KEY, _VALUE = "{}.to_k_ip.weight", "{}.to_v_ip.weight"
_SIDES = ("down", "up")
_LOW_RANK = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
"""Names of low-rank changes in the files, and of the layer's parts that they change."""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """``width`` is of queries, keys and values; ``context`` of the text that is attended to, None in self-attention."""

    name: str
    width: int
    context: int | None


def attention_layers(unet: Any) -> tuple[AttentionLayer, ...]:
    """All attention layers in the order of ``unet.attn_processors``, by whose number files name them.

    The UNet may be on the meta device.
    """
    return tuple(
        AttentionLayer(name, module.to_q.out_features, module.to_k.in_features if module.is_cross_attention else None)
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
    )


def base_name(width: int) -> str:
    """What a model with a text of this width is called, such as "SD 1.5 (768)"."""
    return f"{_BASES.get(width, 'a model of another kind')} ({width})"


def context_width(layers: Sequence[AttentionLayer]) -> int:
    """The width of the text that a UNet's layers attend to.

    Raises:
        PackageError: there is none, or not one.
    """
    widths = {layer.context for layer in layers if layer.context is not None}
    if len(widths) != 1:
        raise PackageError(f"the UNet attends to texts of widths {sorted(widths)}; identity adapters need just one")
    return widths.pop()


def read_layers(
    name: str,
    weights: Mapping[str, Tensor],
    layers: Sequence[AttentionLayer],
    tokens: int,
    low_rank_scale: float = 1.0,
) -> tuple[tuple[LayerProjections, ...], dict[str, LowRank]]:
    """The keys' and values' weights of all cross-attention layers, and low-rank changes by UNet parameter name.

    Args:
        name: of the adapter, for errors.
        weights: by names that begin with a layer's number.
        layers: of the UNet.
        tokens: the width of the identity tokens.
        low_rank_scale: what the low-rank changes are multiplied by.

    Raises:
        PackageError: the file is for another base model, lacks layers, or has weights that the UNet has no place for.
    """
    expected = context_width(layers)
    if tokens != expected:
        raise PackageError(
            f"adapter {name} is for {base_name(tokens)}, the package is {base_name(expected)}: take the file for it"
        )
    found = tuple(
        _projections(name, weights, index, layer) for index, layer in enumerate(layers) if layer.context is not None
    )
    changes = {
        f"{layer.name}.{ours}.weight": LowRank(*pair, low_rank_scale)
        for index, layer in enumerate(layers)
        for theirs, ours in _LOW_RANK.items()
        if (pair := _pair(weights, index, theirs)) is not None
    }
    if len(weights) > 2 * (len(found) + len(changes)):
        raise PackageError(f"adapter {name} has weights that this UNet has no place for: {_others(weights, layers)}")
    return found, changes


def _projections(name: str, weights: Mapping[str, Tensor], index: int, layer: AttentionLayer) -> LayerProjections:
    keys, values = weights.get(_KEY.format(index)), weights.get(_VALUE.format(index))
    shapes = [None if one is None else tuple(one.shape) for one in (keys, values)]
    if keys is None or values is None or shapes != [(layer.width, layer.context)] * 2:
        raise PackageError(
            f"adapter {name} is not for this UNet: {layer.name} needs {_KEY.format(index)} and {_VALUE.format(index)} "
            f"of {layer.width}x{layer.context}, in the file they are {shapes[0]} and {shapes[1]}"
        )
    return LayerProjections(keys, values)


def _pair(weights: Mapping[str, Tensor], index: int, part: str) -> tuple[Tensor, Tensor] | None:
    down, up = (weights.get(f"{index}.{part}_lora.{side}.weight") for side in _SIDES)
    return None if down is None or up is None else (down, up)


def _others(weights: Mapping[str, Tensor], layers: Sequence[AttentionLayer]) -> str:
    """What is in the file beside what was read."""
    known = {
        f"{index}.{part}_lora.{side}.weight" for index in range(len(layers)) for part in _LOW_RANK for side in _SIDES
    }
    known |= {key.format(index) for index, layer in enumerate(layers) if layer.context for key in (_KEY, _VALUE)}
    return listed(sorted(set(weights) - known) or sorted(weights))


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
