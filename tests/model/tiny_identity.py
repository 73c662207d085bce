"""Identities for the tiny package: two small methods with random weights, two LoRA, and features of nobody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from storyloom_model.identity.adapter import (
    CharacterIdentity,
    IdentityAdapter,
    LayerProjections,
    LowRank,
    Stream,
    StreamMaker,
)
from storyloom_model.identity.features import FeaturesError, IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.loading import save_identity_adapter
from storyloom_model.identity.methods import MAKERS
from storyloom_model.jobs import Identity
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage, write_manifest
from tests.model.tiny import build_tiny_package, tiny_unet

FACE, WIDTH = 16, 32
ENCODERS = "tiny"


class TinyMaker(StreamMaker):
    """Tokens by a linear layer. A stream for each character, of as many tokens as it has references times ``tokens``;
    with ``shared``, one stream for a background and all characters.
    """

    def __init__(self, tokens: int = 2, *, shared: bool = False) -> None:
        super().__init__()
        self._tokens, self._shared = tokens, shared
        self.project = nn.Linear(FACE, tokens * WIDTH)
        self.background = nn.Parameter(torch.randn(1, WIDTH))

    @property
    def config(self) -> dict[str, Any]:
        return {"tokens": self._tokens, "shared": self._shared}

    def streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        return self._streams(cast, 1.0)

    def negative_streams(self, cast: Mapping[str, CharacterIdentity]) -> list[Stream]:
        return self._streams(cast, 0.0)

    def _streams(self, cast: Mapping[str, CharacterIdentity], factor: float) -> list[Stream]:
        own = {name: self._of(name, one, factor) for name, one in cast.items()}
        if self._shared:
            return [Stream(torch.cat([self.background, *own.values()]), None)]
        return [Stream(tokens, name, cast[name].scale) for name, tokens in own.items()]

    def _of(self, name: str, identity: CharacterIdentity, factor: float) -> Tensor:
        faces = [reference.face for reference in identity.features.references if reference.face is not None]
        if not faces:
            raise FeaturesError(f"no reference of {name} shows a face; add one that does")
        found: Tensor = self.project(factor * torch.from_numpy(np.stack(faces)).to(self.background))
        return found.view(-1, WIDTH)


MAKERS |= {"tiny": TinyMaker}


def tiny_features(seed: int, references: int = 1, encoders: str = ENCODERS) -> bytes:
    """Of somebody whom the seed decides."""
    draw = np.random.default_rng(seed)
    faces = [draw.standard_normal(FACE).astype(np.float32) for _ in range(references)]
    return IdentityFeatures(encoders, tuple(ReferenceFeatures(face=face) for face in faces)).to_bytes()


def identity(character: str, seed: int, **settings: Any) -> Identity:
    return Identity(character, tiny_features(seed), **settings)


def tiny_layers(unet: Any) -> list[LayerProjections]:
    widths = [module.to_k.out_features for name, module in unet.named_modules() if name.endswith("attn2")]
    return [LayerProjections(0.2 * torch.randn(width, WIDTH), 0.2 * torch.randn(width, WIDTH)) for width in widths]


def tiny_low_rank(unet: Any, part: str, rank: int = 2) -> dict[str, LowRank]:
    """Changes of all weights that have ``part`` in their names."""
    weights = {name: value for name, value in unet.named_parameters() if part in name and value.ndim > 1}
    return {
        name: LowRank(0.2 * torch.randn(rank, value[0].numel()), 0.2 * torch.randn(len(value), rank))
        for name, value in weights.items()
    }


def save_lora(file: Path, changes: Mapping[str, LowRank]) -> None:
    save_file({f"{key}.{half}": getattr(one, half) for key, one in changes.items() for half in ("down", "up")}, file)


def build_identity_package(folder: Path) -> Path:
    """The tiny package with all that ``add_identities`` adds."""
    return add_identities(build_tiny_package(folder))


def add_identities(folder: Path) -> Path:
    """Adds identity adapters and LoRA to a tiny package.

    Identity adapters: faces (streams by character), shared (one for all and a background), changed (as faces, with
    low-rank changes). LoRA: style and line.
    """
    manifest = ModelPackage.load(folder).manifest.model_dump(mode="json", exclude_none=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = tiny_unet()
        adapters = {
            "faces": IdentityAdapter("faces", TinyMaker(), tiny_layers(unet), encoders=ENCODERS),
            "shared": IdentityAdapter("shared", TinyMaker(shared=True), tiny_layers(unet)),
            "changed": IdentityAdapter(
                "changed", TinyMaker(), tiny_layers(unet), low_rank=tiny_low_rank(unet, "attn1.to_q")
            ),
        }
        for name, adapter in adapters.items():
            save_identity_adapter(folder / "identity" / f"{name}.safetensors", adapter, "tiny")
        for name, part in (("style", "attn2.to_v"), ("line", "conv_in")):
            save_lora(folder / f"{name}.safetensors", tiny_low_rank(unet, part))
    manifest["identity_adapters"] = {
        name: {"file": f"identity/{name}.safetensors", "method": "tiny"} for name in adapters
    }
    manifest["identity_adapters"]["faces"]["keeps"] = ["face", "hair"]
    manifest["loras"] = {name: f"{name}.safetensors" for name in ("style", "line")}
    manifest["limits"]["max_identity_tokens"] = 9
    write_manifest(folder, Manifest.model_validate(manifest))
    return folder
