"""A whole UNet step in the shape of SDXL, with random weights: AMSA in all layers against the plain UNet."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.kernels.records import FORWARD, Case, Record, results

SDXL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
}  # fmt: skip
"""SDXL's UNet but for its additional conditions, which cost nothing beside it."""
SMOKE: dict[str, Any] = SDXL | {
    "sample_size": 16, "block_out_channels": (32, 32, 32), "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 2, 2), "cross_attention_dim": 32,
}  # fmt: skip
PLAIN, PLAIN_FUSED, AMSA = "plain", "plain, K4", "AMSA, K4"


def cases(config: dict[str, Any], frames: int, device: torch.device, repeats: int) -> Iterator[Case]:
    yield Case("UNet", f"SDXL's form F={frames}", FORWARD, {}, partial(_facts, config, frames, device, repeats))


def _facts(config: dict[str, Any], frames: int, device: torch.device, repeats: int) -> Record:
    # Not above: a machine with a GPU may have torch and little else.
    from diffusers import UNet2DConditionModel

    from storyloom_kernels import GroupLayout
    from storyloom_model.attention import StoryAttention, install_story_attention
    from storyloom_model.fusion import fuse_group_norms
    from storyloom_model.maps import ForegroundRule

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**config).to(dtype).eval().requires_grad_(False)
    size = config["sample_size"]
    latents = torch.randn(frames, 4, size, size, device=device, dtype=dtype)
    text = torch.randn(frames, 77, config["cross_attention_dim"], device=device, dtype=dtype)
    time = torch.tensor(500, device=device)
    marks = torch.zeros(frames, 1, 77, dtype=torch.bool, device=device)
    marks[:, :, 3:9] = True
    layout, rule = GroupLayout((frames,)), ForegroundRule("quantile", 0.75)

    def step(*, crosses: bool) -> None:
        story = StoryAttention(layout, (size, size), marks, rule=rule) if crosses else None
        unet(latents, time, text, cross_attention_kwargs={"story": story})

    install_story_attention(unet)
    plain, story = partial(step, crosses=False), partial(step, crosses=True)
    with torch.inference_mode():
        found = results({PLAIN: plain}, device, repeats)
        fuse_group_norms(unet)
        return {"results": found + results({PLAIN_FUSED: plain, AMSA: story}, device, repeats)}
