"""Low-rank changes of a UNet's weights (LoRA; Hu et al. 2021): read, checked, and fused into full weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from storyloom_model.adapters import load_adapter
from storyloom_model.identity.adapter import LowRank
from storyloom_model.package import PackageError

Changes: TypeAlias = Mapping[str, LowRank]
"""By UNet parameter name."""


def load_lora(file: Path) -> dict[str, LowRank]:
    """Reads a LoRA in our form: ``{unet parameter}.down`` and ``.up``, scales multiplied in.

    Raises:
        PackageError: the file is not a readable safetensors file, or of another form.
    """
    return low_rank_of(load_adapter(file), str(file))


def low_rank_of(weights: Mapping[str, Tensor], name: str) -> dict[str, LowRank]:
    """The changes that ``{unet parameter}.down`` and ``.up`` make.

    Args:
        weights: of one file.
        name: of the file or adapter, for the error.

    Raises:
        PackageError: a weight has another name, or is without its other half.
    """
    names = {key.rpartition(".")[0] for key in weights}
    expected = {f"{parameter}.{half}" for parameter in names for half in ("down", "up")}
    if strays := sorted(expected ^ weights.keys()):
        raise PackageError(
            f"{name} is no LoRA in our form: every change is a pair PARAMETER.down and PARAMETER.up; see {strays[0]}"
        )
    return {key: LowRank(weights[f"{key}.down"], weights[f"{key}.up"]) for key in sorted(names)}


def check_low_rank(changes: Changes, unet: Any, name: str) -> None:
    """Refuses changes that are not for a UNet.

    Raises:
        PackageError: a change is of a weight that the UNet has not, or of another shape.
    """
    base = dict(unet.named_parameters())
    for key, change in changes.items():
        if key not in base:
            raise PackageError(f"{name} is not for this UNet: it changes {key}, which the UNet has not")
        shape = base[key].shape
        inputs = base[key].numel() // shape[0]
        fits = change.down.ndim == change.up.ndim == 2 and len(change.down) == change.up.shape[1]
        if not fits or (len(change.up), change.down.shape[1]) != (shape[0], inputs):
            raise PackageError(
                f"{name} is not for this UNet: {key} is {list(shape)}, hence needs down [r, {inputs}] and up "
                f"[{shape[0]}, r]; got {list(change.down.shape)} and {list(change.up.shape)}"
            )


@torch.no_grad()
def fuse(unet: Any, changes: Sequence[tuple[Changes, float]]) -> dict[str, Tensor]:
    """The UNet's weights with changes added, those that change alone; computed in float32 on the UNet's device.

    Args:
        unet: is left alone.
        changes: each with the weight by which it counts. Kernels of convolutions are flattened.
    """
    base = dict(unet.named_parameters())
    fused: dict[str, Tensor] = {}
    for low_rank, weight in changes:
        for key, change in low_rank.items():
            device = base[key].device
            down, up = (half.to(device, torch.float32) for half in (change.down, change.up))
            before = fused[key] if key in fused else base[key].float()
            fused[key] = before + (weight * change.scale) * (up @ down).view(before.shape)
    return {key: value.to(base[key].dtype) for key, value in fused.items()}
