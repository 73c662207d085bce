"""A finished model package as later stages train on top of it: its UNet frozen, its data as latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from storyloom_model.adapters import load_adapter, with_adapter
from storyloom_model.attention import install_story_attention
from storyloom_model.components import Components
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage
from storyloom_training.base import TextToImage
from storyloom_training.config import DataRecipe
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.vae import encode_pictures


def frozen_model(package: ModelPackage, components: Components) -> TextToImage:
    """UNet and text encoder, with the package's default ID-Synchronizer and story attention; nothing trains."""
    unet, adapter = components.unet, Manifest.adapter_key(package.manifest.defaults.adapter)
    if adapter is not None:
        unet = with_adapter(unet, load_adapter(package.adapter_file(adapter)), adapter)
    unet = unet.to(memory_format=torch.channels_last)
    install_story_attention(unet)
    return TextToImage(unet, components.text_encoder).requires_grad_(False).eval()


def rendered_set(folder: Path, split: Split, plan: DataRecipe, groups: int) -> StoryDB:
    """Pictures on disk, made if they are not there."""
    data = StoryDB(folder, split, groups, plan.frames, plan.size, plan.mask_size)
    data.prepare()
    return data


def latents_of(file: Path, data: StoryDB, vae: AutoencoderKL) -> Tensor:
    """The latents of a set, scaled, float16 [pictures, c, h, w]; encoded and kept in `file` if they are not there."""
    if not file.exists():
        scale = float(vae.config.scaling_factor)
        torch.save({"values": (encode_pictures(vae, data.pictures) * scale).half(), "scale": scale}, file)
    values: Tensor = torch.load(file, weights_only=True, mmap=True)["values"]
    return values
