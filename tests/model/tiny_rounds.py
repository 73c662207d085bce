"""The tiny package as one whose stories may be made in rounds: IP-Adapters with random weights, and real encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.jobs import GlobalReferences
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage, write_manifest
from tests.model.published_files import adapter_shapes, random_weights
from tests.model.tiny import build_tiny_package, tiny_unet

STATES, EMBEDDING = 128, 256
"""Of the built-in model's image encoder."""
COUNT = 50
"""States of a picture: 7 by 7 patches and the class token."""
_BUILT_IN = Path(__file__).parents[2] / "weights" / "storyloom-mini"


def build_rounds_package(folder: Path) -> Path:
    """Identity adapters: plain (ip-adapter), plus (ip-adapter-plus), face (ip-adapter-plus-face). Encoders are those of
    the built-in model.
    """
    build_tiny_package(folder)
    manifest = ModelPackage.load(folder).manifest.model_dump(mode="json", exclude_none=True)
    layers = attention_layers(tiny_unet())
    manifest["name"] = "rounds"
    manifest["identity_adapters"] = {}
    (folder / "identity").mkdir()
    for name, form in (("face", "ip-adapter-plus"), ("plus", "ip-adapter-plus"), ("plain", "ip-adapter")):
        file = f"identity/{name}.safetensors"
        weights = random_weights(adapter_shapes(form, layers, states=STATES, embedding=EMBEDDING))
        # As loud as a text, and not much louder.
        weights = {key: 0.3 * value if key.startswith("image_proj") else value for key, value in weights.items()}
        save_file(weights, folder / file)
        manifest["identity_adapters"][name] = {"file": file, "method": f"{form}-face" if name == "face" else form}
    for part in ("faces", "image_encoder"):
        (folder / part).symlink_to(_BUILT_IN / part, target_is_directory=True)
    manifest["encoders"] = {"faces": "faces", "image": "image_encoder"}
    write_manifest(folder, Manifest.model_validate(manifest))
    return folder


def pictures(count: int, seed: int = 0) -> list[ReferenceFeatures]:
    """What an image encoder might say of so many whole pictures."""
    draw = np.random.default_rng(seed)
    return [
        ReferenceFeatures(
            character_states=draw.standard_normal((COUNT, STATES)).astype(np.float32),
            character_embedding=draw.standard_normal(EMBEDDING).astype(np.float32),
        )
        for _ in range(count)
    ]


def references(count: int, scale: float = 0.4, seed: int = 0) -> GlobalReferences:
    return GlobalReferences(IdentityFeatures("tiny", tuple(pictures(count, seed))).to_bytes(), scale)


def projections(folder: Path, adapter: str) -> dict[str, torch.Tensor]:
    """The weights of one of its files, as they are."""
    from safetensors.torch import load_file

    return load_file(folder / "identity" / f"{adapter}.safetensors")
