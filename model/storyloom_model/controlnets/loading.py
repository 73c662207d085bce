"""ControlNets from their published folders, and whether they fit the model that they are to control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from storyloom_model.controlnets.nets import ControlNet
from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.manifest import Manifest
from storyloom_model.package import PackageError

_SHARED = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")
"""Of the configurations: what a ControlNet has in common with the UNet whose encoder it is a copy of."""


def load_controlnet(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A ControlNetModel of diffusers.

    Raises:
        PackageError: the folder is not a diffusers ControlNet with safetensors weights.
    """
    nets: Any = ControlNetModel
    try:
        net = nets.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise PackageError(f"{folder} is not a diffusers ControlNet in safetensors: {error}") from error
    return net.eval().requires_grad_(False)


def fitting_controlnets(
    modules: Mapping[str, Any], manifest: Manifest, adapters: Mapping[str, IdentityAdapter], unet: Any, factor: int
) -> dict[str, ControlNet]:
    """The ControlNets of a package, as the engine runs them.

    Args:
        modules: ControlNetModels by name.
        manifest: of the package.
        adapters: identity adapters by name.
        unet: the package's.
        factor: pixels of a latent's side.

    Raises:
        PackageError: one does not fit; see ``check_controlnet``.
    """
    for name, net in modules.items():
        reads = adapters.get(manifest.controlnets[name].adapter)
        check_controlnet(name, net, unet, factor, None if reads is None else reads.layers[0].to_k.shape[1])
    return {name: ControlNet(name, net, manifest.controlnets[name]) for name, net in modules.items()}


def check_controlnet(name: str, net: Any, unet: Any, factor: int, tokens: int | None = None) -> None:
    """Refuses a ControlNet that is for another model. Both may be on the meta device.

    Args:
        name: of the ControlNet, for the error.
        net: a ControlNetModel.
        unet: a UNet2DConditionModel.
        factor: pixels of a latent's side.
        tokens: width of the tokens that it reads in place of the text; None: it reads the text.

    Raises:
        PackageError: it does not fit; the message says in what.
    """
    for key in _SHARED:
        found, expected = (_plain(module.config.get(key)) for module in (net, unet))
        if found != expected:
            raise PackageError(
                f"ControlNet {name} is for another base model: its {key} is {found}, the UNet's {expected}; take the "
                "one for this base"
            )
    if net.config.get("class_embed_type") or net.config.get("encoder_hid_dim_type"):
        raise PackageError(f"ControlNet {name} takes more than a text and a picture, which is not supported")
    if tokens not in (None, net.config.cross_attention_dim):
        raise PackageError(
            f"ControlNet {name} reads tokens of width {net.config.cross_attention_dim}, its identity adapter makes "
            f"some of {tokens}; take those that were made for each other"
        )
    embedding = net.controlnet_cond_embedding
    shrinks = 2 ** (len(embedding.blocks) // 2)
    if embedding.conv_in.in_channels != 3 or shrinks != factor:
        raise PackageError(
            f"ControlNet {name} takes pictures of {embedding.conv_in.in_channels} channels and makes them {shrinks} "
            f"times smaller; the model needs 3 and {factor}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
