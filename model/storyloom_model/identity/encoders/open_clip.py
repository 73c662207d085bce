"""open_clip's published vision towers as transformers modules: the same function under other names.

Nothing of the open_clip library is needed, nor torchvision, which it imports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from storyloom_model.identity.encoders.errors import EncodersError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ViT-B-32": {"head_width": 64},
    "ViT-B-16": {"head_width": 64},
    "ViT-L-14": {"head_width": 64},
    "ViT-L-14-quickgelu": {"head_width": 64, "quick_gelu": True},
    "ViT-H-14": {"head_width": 80},
    "ViT-g-14": {"head_width": 88},
    "ViT-bigG-14": {"head_width": 104},
}
"""What the weights of a single file do not tell, by open_clip's name of the model, which is the file's name."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels in [0, 1] as OpenAI's CLIP takes them, and all encoders that do not say otherwise."""

Loaded = tuple[CLIPVisionModelWithProjection, Sequence[float], Sequence[float]]


def is_open_clip(path: Path) -> bool:
    return path.is_file() or (path / CONFIG_FILE).is_file()


def load_open_clip(path: Path) -> Loaded:
    """Loads the vision tower of a folder as on the hub, or of one file called as its architecture: the module, and mean
    and standard deviation of the pixels.

    Raises:
        EncodersError: the file is not safetensors, is damaged, or is of an architecture that is not known here.
    """
    folder = path.is_dir()
    weights = path / WEIGHTS_FILE if folder else path
    config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")) if folder else {}
    model: dict[str, Any] = config.get("model_cfg", {})
    vision = model.get("vision_cfg") if folder else ARCHITECTURES.get(path.stem)
    if vision is None:
        raise EncodersError(
            f"{path.name} does not tell its architecture; name the file as open_clip names it "
            f"({', '.join(ARCHITECTURES)}), or give the folder with {CONFIG_FILE}"
        )
    if weights.suffix != ".safetensors":
        raise EncodersError(f"{weights} is not a .safetensors file; convert it, since pickled files can run code")
    quick = model.get("quick_gelu", vision.get("quick_gelu", False))
    tower = _tower(weights)
    try:
        network = _network(tower, vision.get("head_width", 64), "quick_gelu" if quick else "gelu")
    except (KeyError, RuntimeError) as error:
        raise EncodersError(f"{weights} is not a CLIP vision transformer of open_clip: {error}") from error
    pixels = config.get("preprocess_cfg", {})
    return network, pixels.get("mean", CLIP_MEAN), pixels.get("std", CLIP_STD)


def _tower(weights: Path) -> dict[str, Tensor]:
    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise EncodersError(f"{weights} is missing or damaged ({error}); copy it again") from error
    return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}


def _network(tower: Mapping[str, Tensor], head_width: int, activation: str) -> CLIPVisionModelWithProjection:
    width, _, patch, _ = tower["conv1.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in tower if name.startswith("transformer.resblocks."))
    grid = round((len(tower["positional_embedding"]) - 1) ** 0.5)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=len(tower["transformer.resblocks.0.mlp.c_fc.bias"]),
        num_hidden_layers=layers, num_attention_heads=width // head_width, image_size=grid * patch, patch_size=patch,
        projection_dim=tower["proj"].shape[1], hidden_act=activation,
    )  # fmt: skip
    with torch.device("meta"):
        network = CLIPVisionModelWithProjection(config)
    renamed = {name: value.float() for name, value in _renamed(tower, layers).items()}
    embeddings = network.vision_model.embeddings
    network.load_state_dict(renamed, assign=True)
    # Not a weight, so that it is still without data.
    embeddings.position_ids = torch.arange(grid * grid + 1).unsqueeze(0)
    return network


def _renamed(tower: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    state = {
        "vision_model.embeddings.class_embedding": tower["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": tower["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": tower["positional_embedding"],
        "visual_projection.weight": tower["proj"].T.contiguous(),
    }
    for theirs, ours in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        state |= _both(tower, theirs, f"vision_model.{ours}")
    for index in range(layers):
        theirs, ours = f"transformer.resblocks.{index}", f"vision_model.encoder.layers.{index}"
        state |= _both(tower, f"{theirs}.ln_1", f"{ours}.layer_norm1")
        state |= _both(tower, f"{theirs}.ln_2", f"{ours}.layer_norm2")
        state |= _both(tower, f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1")
        state |= _both(tower, f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2")
        state |= _both(tower, f"{theirs}.attn.out_proj", f"{ours}.self_attn.out_proj")
        for kind in ("weight", "bias"):
            stacked = tower[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            names = (f"{ours}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            state |= dict(zip(names, (part.clone() for part in stacked), strict=True))
    return state


def _both(tower: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.{kind}": tower[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
