"""Adapters: full replacements for some of the UNet's weights, such as Storynizor's ID-Synchronizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from storyloom_model.package import PackageError


def load_adapter(file: Path) -> dict[str, torch.Tensor]:
    """Reads an adapter: weights by UNet parameter name.

    Raises:
        PackageError: the file is not a readable safetensors file.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise PackageError(f"{file} cannot be read as safetensors: {error}; copy it again") from error


def with_adapter(unet: Any, weights: Mapping[str, torch.Tensor], name: str) -> Any:
    """A second UNet with the adapter's weights; every other tensor is shared with the first.

    Args:
        unet: the base UNet, which is left alone.
        weights: by parameter name; moved to the device and dtype of the weights that they replace.
        name: of the adapter, for the error.

    Raises:
        PackageError: the adapter has a weight that the UNet has not, or of another shape.
    """
    base = dict(unet.named_parameters())
    for key, weight in weights.items():
        if key not in base or base[key].shape != weight.shape:
            found = list(base[key].shape) if key in base else "no such weight"
            raise PackageError(
                f"adapter {name} is not for this UNet: {key} is {list(weight.shape)}, in the UNet {found}"
            )
    # With every tensor in the memo, deepcopy copies the modules and keeps the tensors.
    tensors = [*unet.parameters(), *unet.buffers()]
    adapted = copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors})
    for key, weight in weights.items():
        module, _, attribute = key.rpartition(".")
        value = weight.to(device=base[key].device, dtype=base[key].dtype)
        setattr(adapted.get_submodule(module), attribute, torch.nn.Parameter(value, requires_grad=False))
    return adapted
