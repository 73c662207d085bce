"""Identity adapters as files.

Our own form is a safetensors file. Metadata: ``format``, ``method``, ``config`` (JSON, of the stream maker) and, if it
was trained on particular ones, ``encoders``; published forms may have the last, too. Weights: ``maker.*``,
``layers.{i}.to_k`` and ``layers.{i}.to_v`` by the place among the UNet's cross-attention layers, and
``low_rank.{UNet parameter}.down`` and ``.up``, scales multiplied in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from storyloom_model.identity.adapter import IdentityAdapter, LayerProjections, NoStreams, StreamMaker
from storyloom_model.identity.methods import MAKERS, READERS
from storyloom_model.low_rank import check_low_rank, low_rank_of
from storyloom_model.package import ModelPackage, PackageError

FORMAT = "1"
ENCODERS = "encoders"
"""Metadata of either form: the fingerprint of the encoders that an adapter was trained on."""
_MAKER, _LAYERS, _LOW_RANK = "maker.", "layers.", "low_rank."


def save_identity_adapter(file: Path, adapter: IdentityAdapter, method: str) -> None:
    """Writes an adapter in our own form. Its ``scale`` is for the manifest to say.

    Args:
        file: made or replaced; so is its folder.
        adapter: its maker says its configuration.
        method: a name of ``MAKERS``.
    """
    weights = {_MAKER + key: value for key, value in adapter.maker.state_dict().items()}
    for place, layer in enumerate(adapter.layers):
        weights |= {f"{_LAYERS}{place}.to_k": layer.to_k, f"{_LAYERS}{place}.to_v": layer.to_v}
    for key, change in adapter.low_rank.items():
        weights |= {f"{_LOW_RANK}{key}.down": change.down, f"{_LOW_RANK}{key}.up": change.scale * change.up}
    metadata = {"format": FORMAT, "method": method, "config": json.dumps(adapter.maker.config)}
    if adapter.encoders is not None:
        metadata[ENCODERS] = adapter.encoders
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, file, metadata)


def load_identity_adapters(package: ModelPackage, unet: Any) -> dict[str, IdentityAdapter]:
    """Those of a package, by name; see ``load_identity_adapter``."""
    return {
        name: load_identity_adapter(package.folder / one.file, name, one.method, unet, scale=one.scale, start=one.start)
        for name, one in package.manifest.identity_adapters.items()
    }


def load_identity_adapter(
    file: Path, name: str, method: str, unet: Any, *, scale: float = 1.0, start: float | None = None
) -> IdentityAdapter:
    """Reads an adapter, ready for a UNet: on its device, in its dtype, with nothing to train.

    Args:
        file: in our own form, or in a published one.
        name: of the adapter.
        method: what the manifest calls its method.
        unet: a UNet2DConditionModel.
        scale: multiplies that of the file.
        start: in place of the adapter's ``words_start``; None leaves it.

    Raises:
        PackageError: the method is unknown, or the file is damaged, of another method, or for another UNet; or a start
            is given to an adapter that has none.
    """
    weights, metadata = _read(file)
    if "method" in metadata and "format" in metadata:
        adapter = _own_form(name, method, weights, metadata)
    elif method in READERS:
        adapter = READERS[method](method, name, weights, unet)
        adapter.encoders = metadata.get(ENCODERS)
    else:
        known = ", ".join(sorted({*MAKERS, *READERS})) or "none"
        raise PackageError(f"identity adapter {name}: {file} is in no form of the method {method}; known are {known}")
    _check_layers(adapter, unet)
    check_low_rank(adapter.low_rank, unet, f"identity adapter {name}")
    for maker in (adapter.maker, adapter.words):
        if maker is not None:
            maker.eval().requires_grad_(False).to(unet.device, unet.dtype)
    if start is not None:
        if adapter.words is None:
            raise PackageError(f"identity adapter {name} writes nobody into the text, so that its start means nothing")
        adapter.words_start = start
    adapter.layers = [
        LayerProjections(*(one.detach().to(unet.device, unet.dtype) for one in (layer.to_k, layer.to_v)))
        for layer in adapter.layers
    ]
    adapter.scale *= scale
    return adapter


def _own_form(name: str, method: str, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> IdentityAdapter:
    if metadata["format"] != FORMAT:
        raise PackageError(f"identity adapter {name} has format {metadata['format']}; this version reads {FORMAT}")
    if metadata["method"] != method:
        raise PackageError(f"identity adapter {name} is of the method {metadata['method']}, the manifest says {method}")
    if method not in MAKERS:
        raise PackageError(f"identity adapter {name}: unknown method {method}; use one of {', '.join(sorted(MAKERS))}")
    parts = {prefix: _below(prefix, weights) for prefix in (_MAKER, _LAYERS, _LOW_RANK)}
    strays = sorted(key for key in weights if not key.startswith(tuple(parts)))
    if strays:
        raise PackageError(f"identity adapter {name} has a weight that its form does not know: {strays[0]}")
    return IdentityAdapter(
        name,
        _maker(name, MAKERS[method], metadata.get("config", "{}"), parts[_MAKER]),
        _layers(name, parts[_LAYERS]),
        low_rank=low_rank_of(parts[_LOW_RANK], f"identity adapter {name}"),
        encoders=metadata.get(ENCODERS),
    )


def _maker(name: str, kind: type[StreamMaker], config: str, weights: Mapping[str, Tensor]) -> StreamMaker:
    try:
        with torch.device("meta"):
            maker = kind.from_config(json.loads(config))
        maker.load_state_dict(weights, strict=True, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PackageError(f"identity adapter {name} does not fit its method: {error}") from error
    return maker


def _layers(name: str, weights: Mapping[str, Tensor]) -> list[LayerProjections]:
    count = len(weights) // 2
    expected = {f"{place}.{part}" for place in range(count) for part in ("to_k", "to_v")}
    if strays := sorted(expected ^ weights.keys()):
        raise PackageError(
            f"identity adapter {name}: its layers must be pairs to_k and to_v, counted from 0; see {strays[0]}"
        )
    return [LayerProjections(weights[f"{place}.to_k"], weights[f"{place}.to_v"]) for place in range(count)]


def _check_layers(adapter: IdentityAdapter, unet: Any) -> None:
    modules: Any = unet.named_modules()
    attention = [(key, one) for key, one in modules if isinstance(one, Attention) and one.is_cross_attention]
    if isinstance(adapter.maker, NoStreams) and not adapter.layers:
        return
    if len(adapter.layers) != len(attention):
        raise PackageError(
            f"identity adapter {adapter.name} has {len(adapter.layers)} layers, the UNet {len(attention)}; it is for "
            "another base model"
        )
    tokens = adapter.layers[0].to_k.shape[1:] if adapter.layers else ()
    for (key, module), layer in zip(attention, adapter.layers, strict=True):
        expected = (module.to_k.out_features, *tokens)
        if not layer.to_k.shape == layer.to_v.shape == expected:
            raise PackageError(
                f"identity adapter {adapter.name} is not for this UNet: {key} needs to_k and to_v {list(expected)}; "
                f"got {list(layer.to_k.shape)} and {list(layer.to_v.shape)}"
            )


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as content:
            return {key: content.get_tensor(key) for key in content.keys()}, dict(content.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise PackageError(f"{file} cannot be read as safetensors: {error}; copy it again") from error
