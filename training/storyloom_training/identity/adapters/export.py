"""Writes what was trained as the file that the engine loads."""

from __future__ import annotations

from pathlib import Path

import torch

from storyloom_model.identity.adapter import IdentityAdapter, LayerProjections, LowRank
from storyloom_model.identity.loading import save_identity_adapter
from storyloom_training.identity.adapters.trainee import Trainee


def save_adapter(file: Path, trainee: Trainee, *, method: str, encoders: str | None = None) -> None:
    """Float16 safetensors in the engine's own form; the trainee is left alone."""
    layers = [LayerProjections(layer.to_k.half(), layer.to_v.half()) for layer in trainee.projections()]
    maker = type(trainee.maker).from_config(trainee.maker.config)
    maker.load_state_dict(trainee.maker.state_dict())
    low_rank = {
        name: LowRank(change.down.half(), change.up.half(), change.scale) for name, change in trainee.low_rank.items()
    }
    adapter = IdentityAdapter(file.stem, maker.to(torch.float16), layers, low_rank=low_rank, encoders=encoders)
    save_identity_adapter(file, adapter, method)
