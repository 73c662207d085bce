"""Tiny random files with the keys of published ones, spelled out here and nowhere made by the code that reads them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_model.identity.published.layers import AttentionLayer

FACE = 512
STATES = 48
"""Width of the tiny image encoder's hidden states."""
EMBEDDING = 40
PORTRAIT = 32
"""Side of portraits, as the tiny image encoder of PhotoMaker takes them."""
DEPTH = 4
HEAD = 64
"""diffusers takes these two for granted."""


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes by name; ``linear`` and ``norm`` add what such a layer has."""

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, width: int) -> None:
        self[f"{name}.weight"] = self[f"{name}.bias"] = (width,)

    def perceiver(self, prefix: str, *, inputs: int, width: int, outputs: int, heads: int) -> None:
        self.linear(f"{prefix}proj_in", inputs, width)
        self.linear(f"{prefix}proj_out", width, outputs)
        self.norm(f"{prefix}norm_out", outputs)
        for layer in range(DEPTH):
            attention, feed_forward = f"{prefix}layers.{layer}.0", f"{prefix}layers.{layer}.1"
            self.norm(f"{attention}.norm1", width)
            self.norm(f"{attention}.norm2", width)
            self.linear(f"{attention}.to_q", width, heads * HEAD, bias=False)
            self.linear(f"{attention}.to_kv", width, 2 * heads * HEAD, bias=False)
            self.linear(f"{attention}.to_out", heads * HEAD, width, bias=False)
            self.norm(f"{feed_forward}.0", width)
            self.linear(f"{feed_forward}.1", width, 4 * width, bias=False)
            self.linear(f"{feed_forward}.3", 4 * width, width, bias=False)

    def face(self, width: int, tokens: int = 4) -> None:
        self.linear("proj.0", FACE, 2 * FACE)
        self.linear("proj.2", 2 * FACE, tokens * width)
        self.norm("norm", width)

    def identity_layers(self, layers: Sequence[AttentionLayer]) -> None:
        for index, layer in enumerate(layers):
            if layer.context is not None:
                self.linear(f"{index}.to_k_ip", layer.context, layer.width, bias=False)
                self.linear(f"{index}.to_v_ip", layer.context, layer.width, bias=False)

    def low_rank_layers(self, layers: Sequence[AttentionLayer], rank: int) -> None:
        for index, layer in enumerate(layers):
            for part in ("to_q", "to_k", "to_v", "to_out"):
                inputs = (layer.context or layer.width) if part in ("to_k", "to_v") else layer.width
                self.linear(f"{index}.{part}_lora.down", inputs, rank, bias=False)
                self.linear(f"{index}.{part}_lora.up", rank, layer.width, bias=False)

    def below(self, prefix: str) -> Shapes:
        return Shapes({f"{prefix}{name}": shape for name, shape in self.items()})


def image_shapes(form: str, width: int, *, states: int = STATES, embedding: int = EMBEDDING) -> Shapes:
    """What is below "image_proj." in an IP-Adapter or InstantID file; ``width`` is of the UNet's text."""
    shapes = Shapes()
    sdxl = width == 2048
    if form == "ip-adapter":
        shapes.linear("proj", embedding, 4 * width)
        shapes.norm("norm", width)
    elif form == "ip-adapter-full":
        shapes.linear("proj.0", states, states)
        shapes.linear("proj.2", states, width)
        shapes.norm("proj.3", width)
    elif form == "ip-adapter-plus":
        inner, heads = (1280, 20) if sdxl else (width, 12)
        shapes["latents"] = (1, 16, inner)
        shapes.perceiver("", inputs=states, width=inner, outputs=width, heads=heads)
    elif form == "ip-adapter-faceid":
        shapes.face(width)
    elif form == "ip-adapter-faceid-plus":
        shapes.face(width)
        shapes.perceiver("perceiver_resampler.", inputs=states, width=width, outputs=width, heads=max(width // HEAD, 1))
    elif form == "instantid":
        inner, heads = (1280, 20) if sdxl else (96, 2)
        shapes["latents"] = (1, 16, inner)
        shapes.perceiver("", inputs=FACE, width=inner, outputs=width, heads=heads)
    return shapes


def adapter_shapes(
    form: str, layers: Sequence[AttentionLayer], *, states: int = STATES, embedding: int = EMBEDDING, rank: int = 2
) -> Shapes:
    """A whole file of a form, for a UNet."""
    width = next(layer.context for layer in layers if layer.context is not None)
    attention = Shapes()
    attention.identity_layers(layers)
    if "faceid" in form:
        attention.low_rank_layers(layers, rank)
    return Shapes(
        image_shapes(form, width, states=states, embedding=embedding).below("image_proj.")
        | attention.below("ip_adapter.")
    )


def storymaker_shapes(layers: Sequence[AttentionLayer], *, states: int = STATES, rank: int = 2) -> Shapes:
    """StoryMaker's file, for a UNet."""
    width = next(layer.context for layer in layers if layer.context is not None)
    image = Shapes({"pos_embed": (3, 20, width), "bg_embed": (1, 20, width)})
    image.face(width)
    image.linear("proj_out", width, width)
    image.norm("norm_out", width)
    image.perceiver("perceiver_resampler.", inputs=states, width=width, outputs=width, heads=max(width // HEAD, 1))
    inner, heads = (1280, 20) if width == 2048 else (64, 1)
    image["resample.latents"] = (1, 16, inner)
    image.perceiver("resample.", inputs=states, width=inner, outputs=width, heads=heads)
    attention = Shapes()
    attention.identity_layers(layers)
    attention.low_rank_layers(layers, rank)
    return Shapes(image.below("image_proj_model.") | attention.below("ip_adapter."))


def photomaker_shapes(layers: Sequence[AttentionLayer], *, second: bool, rank: int = 2) -> Shapes:
    """PhotoMaker's file of either version, for a UNet; at a text of 2048 as it is published."""
    width = next(layer.context for layer in layers if layer.context is not None)
    full = width == 2048
    states, hidden, depth, patch, positions = (1024, 4096, 24, 14, 257) if full else (64, 96, 2, 8, 17)
    first = 768 if full else width // 2
    encoder, clip = Shapes(), "vision_model."
    encoder[f"{clip}embeddings.class_embedding"] = (states,)
    encoder[f"{clip}embeddings.patch_embedding.weight"] = (states, 3, patch, patch)
    encoder[f"{clip}embeddings.position_embedding.weight"] = (positions, states)
    encoder.norm(f"{clip}pre_layrnorm", states)
    encoder.norm(f"{clip}post_layernorm", states)
    for layer in range(depth):
        own = f"{clip}encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            encoder.linear(f"{own}.self_attn.{part}", states, states)
        encoder.norm(f"{own}.layer_norm1", states)
        encoder.norm(f"{own}.layer_norm2", states)
        encoder.linear(f"{own}.mlp.fc1", states, hidden)
        encoder.linear(f"{own}.mlp.fc2", hidden, states)
    encoder.linear("visual_projection", states, first, bias=False)
    encoder.linear("visual_projection_2", states, width - first, bias=False)
    for name, inputs in (("mlp1", 2 * width), ("mlp2", width)):
        encoder.norm(f"fuse_module.{name}.layernorm", inputs)
        encoder.linear(f"fuse_module.{name}.fc1", inputs, width)
        encoder.linear(f"fuse_module.{name}.fc2", width, width)
    encoder.norm("fuse_module.layer_norm", width)
    if second:
        encoder.linear("qformer_perceiver.token_proj.0", FACE, 4 * FACE)
        encoder.linear("qformer_perceiver.token_proj.2", 4 * FACE, 2 * width)
        encoder.norm("qformer_perceiver.token_norm", width)
        # Heads of 128 channels, which the perceivers of other methods halve.
        heads = 2 * max(width // 128, 1)
        encoder.perceiver(
            "qformer_perceiver.perceiver_resampler.", inputs=states, width=width, outputs=width, heads=heads
        )
    changes = Shapes()
    for layer in layers:
        for part in ("to_q", "to_k", "to_v", "to_out"):
            inputs = (layer.context or layer.width) if part in ("to_k", "to_v") else layer.width
            name = f"unet.{layer.name}.processor.{part}_lora"
            changes.linear(f"{name}.down", inputs, rank, bias=False)
            changes.linear(f"{name}.up", rank, layer.width, bias=False)
    return Shapes(encoder.below("id_encoder.") | changes.below("lora_weights."))


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights large enough that a wrong one shows, small enough that nothing overflows."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def meta_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights without contents, for files of full size."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def nested(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """As torch files of adapters are: a dictionary for each half."""
    halves: dict[str, Any] = {}
    for name, value in weights.items():
        half, _, rest = name.partition(".")
        halves.setdefault(half, {})[rest] = value
    return halves


def published_unet(width: int = 64, **changes: Any) -> Any:
    """Two levels, six attention layers of each kind, a text of this width."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return UNet2DConditionModel(  # type: ignore[no-untyped-call]
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(2, 4),
            cross_attention_dim=width,
            norm_num_groups=8,
            **changes,
        )


@functools.cache
def full_size_unet(base: str) -> Any:
    """The UNet of "SD 1.5" or "SDXL" without contents."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNETS[base])  # type: ignore[no-untyped-call]


UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    },
    "SDXL": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""What their config.json say that differs from diffusers' defaults."""


def identity(seed: int = 0, *, states: int = STATES, count: int = 5, **changes: Any) -> IdentityFeatures:
    """Features of one reference that shows everything, in random numbers; ``changes`` are fields of it."""
    random = np.random.default_rng(seed)
    face = random.standard_normal(FACE).astype(np.float32)
    fields: dict[str, Any] = {
        "face": face / np.linalg.norm(face),
        "face_states": random.standard_normal((count, states)).astype(np.float32),
        "face_embedding": random.standard_normal(EMBEDDING).astype(np.float32),
        "character_states": random.standard_normal((count, states)).astype(np.float32),
        "character_embedding": random.standard_normal(EMBEDDING).astype(np.float32),
        "portrait": random.integers(0, 256, (PORTRAIT, PORTRAIT, 3), dtype=np.uint8),
    }
    return IdentityFeatures("test", (ReferenceFeatures(**(fields | changes)),))
