"""A whole UNet step in the shape of SDXL, with random weights: AMSA in all layers against the plain UNet.

Prints, last, the time of the first as a multiple of the second's.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from benchmarks.kernels.timing import measure
from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention, install_story_attention
from storyloom_model.fusion import fuse_group_norms
from storyloom_model.maps import ForegroundRule

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.kernels.unet", description=__doc__)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="a tiny UNet: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, help="folder for the results; default benchmarks/results/<device>")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = SMOKE if options.smoke else SDXL
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**config).to(dtype).eval().requires_grad_(False)
    frames, size = options.frames, config["sample_size"]
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
    with torch.inference_mode():
        plain = measure(lambda: step(crosses=False), device, options.repeats)
        fuse_group_norms(unet)
        fused = measure(lambda: step(crosses=False), device, options.repeats)
        story = measure(lambda: step(crosses=True), device, options.repeats)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result = {
        "hardware": name, "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "frames": frames, "smoke": options.smoke, "plain": asdict(plain), "plain_fused_norms": asdict(fused),
        "amsa": asdict(story), "ratio": story.milliseconds / plain.milliseconds,
    }  # fmt: skip
    out: Path = options.out or Path("benchmarks/results") / name.lower().replace(" ", "-")
    out.mkdir(parents=True, exist_ok=True)
    (out / "unet.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"plain {plain.milliseconds:.2f} ms, with fused norms {fused.milliseconds:.2f}, AMSA {story.milliseconds:.2f}"
    )
    print(f"a UNet step with AMSA in all layers takes {result['ratio']:.2f} times the plain UNet's time")


if __name__ == "__main__":
    main()
