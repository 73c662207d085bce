"""UNets in the shape of published models: the configuration on the meta device, and a block with parity."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from storyloom_export import components
from storyloom_export.graph import build_graph
from storyloom_export.memory import DeviceMemory
from storyloom_export.onnx_files import write_graph
from storyloom_export.session import Session
from storyloom_export.shapes import SHAPES, build_unet
from storyloom_export.tensorrt.operators import unsupported
from storyloom_export.weights import random_weights
from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention, install_story_attention
from storyloom_model.maps import ForegroundRule

ONE_BLOCK: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (320,), "transformer_layers_per_block": 1},
    "sdxl": {"block_out_channels": (640,), "transformer_layers_per_block": (2,), "attention_head_dim": (10,)},
}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
}
PARAMETERS = {"sd15": 859_520_964, "sdxl": 2_567_463_684}
"""Of the published UNets."""


@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_shapes_are_the_published_ones(shape: str) -> None:
    unet = build_unet(shape, device="meta")
    assert sum(weight.numel() for weight in unet.parameters()) == PARAMETERS[shape]


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_block_exports_from_streamed_weights_and_has_parity(shape: str, tmp_path: Path) -> None:
    changes = BLOCKS | ONE_BLOCK[shape]
    part = components.unet(build_unet(shape, device="meta", **changes), ForegroundRule())
    model = build_graph(part, random_weights(seed=5))
    write_graph(model, tmp_path / "block.onnx")
    assert not unsupported(onnx.load(tmp_path / "block.onnx", load_external_data=False))

    unet = build_unet(shape, **changes)
    loaded = onnx.load(tmp_path / "block.onnx")
    weights = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in loaded.graph.initializer}
    unet.load_state_dict({name: weights[name] for name in unet.state_dict()})
    install_story_attention(unet)

    draw = torch.Generator().manual_seed(1)
    rows, size, tokens = 3, (5, 4), 9
    sample = torch.randn(rows, 4, *size, generator=draw)
    text = torch.randn(rows, tokens, unet.config.cross_attention_dim, generator=draw)
    token_mask = torch.zeros(rows, 2, tokens, dtype=torch.bool)
    token_mask[:, 0, 1:4] = True
    token_mask[1:, 1, 5:7] = True
    maps = torch.rand(rows, 2, *size, generator=draw)
    layout = GroupLayout((2, 1))
    story = StoryAttention(layout, size, token_mask, previous_maps=maps)
    times = torch.tensor([900.0, 900.0, 20.0])
    extra = {}
    if shape == "sdxl":
        extra = {
            "pooled_text": torch.randn(rows, 1280, generator=draw),
            "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).repeat(rows, 1),
        }
    with torch.inference_mode():
        prediction = unet(
            sample,
            times,
            encoder_hidden_states=text,
            cross_attention_kwargs={"story": story},
            added_cond_kwargs={"text_embeds": extra["pooled_text"], "time_ids": extra["time_ids"]} if extra else None,
            return_dict=False,
        )[0]
    inputs = {
        "sample": sample,
        "timestep": times,
        "text": text,
        "token_mask": token_mask,
        "bounds": layout.bounds(sample.device),
        "sources": torch.arange(rows),
        "source_of_row": torch.arange(rows),
        "crosses_frames": torch.ones(rows, dtype=torch.bool),
        "previous_maps": maps,
        **extra,
    }
    outputs = {"prediction": (sample.shape, torch.float32), "maps": (maps.shape, torch.float32)}
    found, found_maps = Session(tmp_path / "block.onnx", DeviceMemory(torch.device("cpu"))).run(inputs, outputs)
    torch.testing.assert_close(found, prediction, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found_maps, story.average_maps(), atol=1e-5, rtol=1e-3)
