"""Writes what was trained as the file that the engine loads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from storyloom_training.identity.adapters.trainee import Trainee


def save_adapter(file: Path, trainee: Trainee, *, method: str, encoders: str) -> None:
    """Float16 safetensors: `maker.*`, `layers.{i}.to_k`, `layers.{i}.to_v`; the method and its switches as metadata."""
    weights = {name: value.detach().to(torch.float16).contiguous() for name, value in trainee.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, {"method": method, "encoders": encoders} | trainee.switches())
