"""Writes what was trained as the file that the engine loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from storyloom_model.identity.adapter import IdentityAdapter, LayerProjections, LowRank
from storyloom_model.identity.loading import ENCODERS, save_identity_adapter
from storyloom_model.identity.published.layers import attention_layers
from storyloom_training.identity.adapters.photomaker import PhotoMakerTrainee
from storyloom_training.identity.adapters.trainee import Trainee


def save_adapter(file: Path, trainee: Trainee, *, method: str, encoders: str) -> None:
    """Float16 safetensors in the engine's own form; the trainee is left alone."""
    layers = [LayerProjections(layer.to_k.half(), layer.to_v.half()) for layer in trainee.projections()]
    maker = type(trainee.maker).from_config(trainee.maker.config)
    maker.load_state_dict(trainee.maker.state_dict())
    low_rank = {
        name: LowRank(change.down.half(), change.up.half(), change.scale) for name, change in trainee.low_rank.items()
    }
    adapter = IdentityAdapter(file.stem, maker.to(torch.float16), layers, low_rank=low_rank, encoders=encoders)
    save_identity_adapter(file, adapter, method)


def save_published(file: Path, trainee: Trainee, unet: Any, encoders: str) -> None:
    """Float16 safetensors with the names that IP-Adapters are published with.

    The maker's projection has the form's own names. The encoders' fingerprint is in the metadata.
    """
    weights = {
        name.replace("projection.", "image_proj.", 1): value for name, value in trainee.maker.state_dict().items()
    }
    crossing = [place for place, layer in enumerate(attention_layers(unet)) if layer.context is not None]
    for place, layer in zip(crossing, trainee.projections(), strict=True):
        weights |= {f"ip_adapter.{place}.to_k_ip.weight": layer.to_k, f"ip_adapter.{place}.to_v_ip.weight": layer.to_v}
    _write(file, weights, encoders)


def save_photomaker(file: Path, trainee: PhotoMakerTrainee, encoders: str) -> None:
    """Float16 safetensors with the names that PhotoMaker is published with, as `save_published`."""
    weights = {f"id_encoder.{name}": value for name, value in trainee.words.state_dict().items()}
    for name, change in trainee.low_rank.items():
        layer, part = name.removesuffix(".weight").removesuffix(".0").rsplit(".", 1)
        own = f"lora_weights.unet.{layer}.processor.{part}_lora"
        weights |= {f"{own}.down.weight": change.down, f"{own}.up.weight": change.up}
    _write(file, weights, encoders)


def _write(file: Path, weights: Mapping[str, Tensor], encoders: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file(kept, file, {ENCODERS: encoders})
