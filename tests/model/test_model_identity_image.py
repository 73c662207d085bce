"""Image encoders: transformers folders and open_clip's weights, against what their authors' code makes of a crop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.image import ImageEncoder

SIZE, PATCH = 56, 14
HALF = 2e-3
"""Relative; features are kept in float16."""


@pytest.fixture
def crop() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def assert_close(found: NDArray[np.float16], wanted: Tensor) -> None:
    scale = float(wanted.abs().max())
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found.astype(np.float32) / scale, wanted.numpy() / scale, atol=HALF)


def test_a_transformers_folder_gives_what_its_processor_and_model_give(tmp_path: Path, crop: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH, projection_dim=24,
    )  # fmt: skip
    network = CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path)
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=[0.5, 0.4, 0.3]
    )
    processor.save_pretrained(tmp_path)
    encoder = ImageEncoder.load(tmp_path)
    (features,) = encoder.encode([crop])
    with torch.no_grad():
        output = network(processor(crop, return_tensors="pt").pixel_values, output_hidden_states=True)
    assert_close(features.states, output.hidden_states[-2][0])
    assert_close(features.embedding, output.image_embeds[0])
    assert (encoder.size, encoder.tokens, encoder.width, encoder.projection) == (SIZE, 17, 32, 24)


class OpenClipBlock(nn.Module):
    """A residual block as open_clip builds it."""

    def __init__(self, width: int, heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 2 * width))
        self.mlp.add_module("gelu", activation)
        self.mlp.add_module("c_proj", nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class OpenClipTower(nn.Module):
    """open_clip's vision transformer, under its names."""

    def __init__(self, head_width: int, activation: nn.Module, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((SIZE // PATCH) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            OpenClipBlock(width, width // head_width, activation) for _ in range(layers)
        )
        self.proj = nn.Parameter(scale * torch.randn(width, 24))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(pixels), 1, -1), patches), 1) + self.positional_embedding
        x = self.ln_pre(x)
        states = [x]
        for block in self.transformer.resblocks:
            states.append(block(states[-1]))
        return states[-2], self.ln_post(states[-1][:, 0]) @ self.proj


def save_tower(tower: nn.Module, file: Path) -> None:
    """As open_clip saves a whole model; a key of the text tower is there too."""
    state = {f"visual.{name}": value.contiguous() for name, value in tower.state_dict().items()}
    save_file(state | {"token_embedding.weight": torch.zeros(2, 2)}, file)


def described(head_width: int, *, quick: bool) -> dict[str, object]:
    vision = {"layers": 3, "width": 64, "head_width": head_width, "patch_size": PATCH, "image_size": SIZE}
    return {
        "model_cfg": {"embed_dim": 24, "quick_gelu": quick, "vision_cfg": vision},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }


@pytest.mark.parametrize(("head_width", "quick"), [(32, False), (16, True)])
def test_an_open_clip_folder_gives_what_open_clip_gives(
    tmp_path: Path, crop: NDArray[np.uint8], head_width: int, quick: bool
) -> None:
    torch.manual_seed(0)
    tower = OpenClipTower(head_width, QuickGelu() if quick else nn.GELU()).eval()
    save_tower(tower, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described(head_width, quick=quick)))
    (features,) = ImageEncoder.load(tmp_path).encode([crop])
    with torch.no_grad():
        states, embedding = tower(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert_close(features.states, states[0])
    assert_close(features.embedding, embedding[0])


def test_a_single_open_clip_file_is_told_by_its_name(tmp_path: Path, crop: NDArray[np.uint8]) -> None:
    tower = OpenClipTower(64, nn.GELU())
    save_tower(tower, tmp_path / "ViT-L-14.safetensors")
    assert len(ImageEncoder.load(tmp_path / "ViT-L-14.safetensors").encode([crop, crop])) == 2
    save_tower(tower, tmp_path / "vision.safetensors")
    with pytest.raises(EncodersError, match="architecture"):
        ImageEncoder.load(tmp_path / "vision.safetensors")


def test_pickled_damaged_and_missing_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ViT-H-14.bin").write_bytes(b"pickle")
    with pytest.raises(EncodersError, match="pickled files can run code"):
        ImageEncoder.load(tmp_path / "ViT-H-14.bin")
    (tmp_path / "ViT-H-14.safetensors").write_bytes(b"nothing")
    with pytest.raises(EncodersError, match="damaged"):
        ImageEncoder.load(tmp_path / "ViT-H-14.safetensors")
    with pytest.raises(EncodersError, match=r"config\.json"):
        ImageEncoder.load(tmp_path / "nowhere")


def test_no_crops_give_no_features(tmp_path: Path) -> None:
    save_tower(OpenClipTower(64, nn.GELU()), tmp_path / "ViT-L-14.safetensors")
    assert ImageEncoder.load(tmp_path / "ViT-L-14.safetensors").encode([]) == []
