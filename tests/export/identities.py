"""Identities for the exported package: adapters of both trained methods and a LoRA, small, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.loading import save_identity_adapter
from storyloom_model.identity.storymaker import StoryMakerResampler, StoryMakerSizes, StoryMakerStreams
from storyloom_model.identity.storynizor import InjectorSizes, StorynizorInjector
from storyloom_model.jobs import Identity
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage, write_manifest
from tests.model.tiny import tiny_unet
from tests.model.tiny_identity import save_lora, tiny_layers, tiny_low_rank

FACE, STATES, WIDTH = 16, 24, 32


def storynizor() -> StorynizorInjector:
    return StorynizorInjector(InjectorSizes(STATES, WIDTH, 2, FACE, depth=1, heads=2, head_dim=8))


def storymaker() -> StoryMakerStreams:
    """Nothing of it is zero, as it is when training begins."""
    sizes = StoryMakerSizes(WIDTH, FACE, STATES, 2, 3, 16, 2, places=3, depth=1, head_width=8)
    resampler = StoryMakerResampler(sizes)
    for weight in (resampler.pos_embed, resampler.bg_embed, resampler.proj_out.weight):
        torch.nn.init.normal_(weight, std=0.5)
    return StoryMakerStreams(resampler)


def add_identities(folder: Path) -> Path:
    """Adds the adapters storynizor (streams by character) and storymaker (one stream, changed weights), and a LoRA."""
    manifest: dict[str, Any] = ModelPackage.load(folder).manifest.model_dump(mode="json", exclude_none=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = tiny_unet()
        low_rank = tiny_low_rank(unet, "attn1.to_q")
        adapters = {
            "storynizor": IdentityAdapter("storynizor", storynizor(), tiny_layers(unet)),
            "storymaker": IdentityAdapter("storymaker", storymaker(), tiny_layers(unet), low_rank=low_rank),
        }
        for name, adapter in adapters.items():
            save_identity_adapter(folder / "identity" / f"{name}.safetensors", adapter, name)
        save_lora(folder / "style.safetensors", tiny_low_rank(unet, "attn2.to_v"))
    manifest["identity_adapters"] = {
        name: {"file": f"identity/{name}.safetensors", "method": name} for name in adapters
    }
    manifest["loras"] = {"style": "style.safetensors"}
    write_manifest(folder, Manifest.model_validate(manifest))
    return folder


def identity(character: str, seed: int, **settings: Any) -> Identity:
    """Somebody whom the seed decides."""
    draw = np.random.default_rng(seed)
    face, *states = (draw.standard_normal(shape).astype(np.float32) for shape in (FACE, (5, STATES), (5, STATES)))
    shown = ReferenceFeatures(face=face, face_states=states[0], character_states=states[1])
    return Identity(character, IdentityFeatures("tiny", (shown,)).to_bytes(), **settings)
