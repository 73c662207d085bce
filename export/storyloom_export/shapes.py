"""UNets in the shape of published models, for checks and measurements without their weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

# From the config.json of stable-diffusion-v1-5/stable-diffusion-v1-5 and stabilityai/stable-diffusion-xl-base-1.0.
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "sample_size": 64,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
}


def build_unet(shape: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **changes: Any) -> Any:
    """A UNet2DConditionModel with random weights.

    Args:
        shape: a key of ``SHAPES``.
        dtype: of the weights.
        device: "meta" for none at all.
        changes: what differs from the published configuration, such as a smaller depth.
    """
    with torch.device(device):
        unet = UNet2DConditionModel(**(SHAPES[shape] | changes))
    return unet.to(dtype).eval().requires_grad_(False)
