"""Components beyond those that every package has: a row in the table is all that one needs."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from storyloom_export import table
from storyloom_export.artefact import package_hash
from storyloom_export.graph import build_graph
from storyloom_export.memory import DeviceMemory
from storyloom_export.onnx_files import write_graph
from storyloom_export.session import Session
from storyloom_export.tensorrt.operators import unsupported
from storyloom_model.package import ModelPackage
from tests.model.tiny import build_tiny_package


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """A package with a vision tower of random weights."""
    folder = build_tiny_package(tmp_path_factory.mktemp("encoder") / "package")
    sizes: Any = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=24,
    )  # fmt: skip
    kind: Any = CLIPVisionModelWithProjection
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(sizes).save_pretrained(folder / table.IMAGE_ENCODER_FOLDER, safe_serialization=True)
    return ModelPackage.load(folder)


def test_a_vision_tower_is_a_component_of_a_package_that_has_one(with_encoder: ModelPackage, tmp_path: Path) -> None:
    rows = {row.name: (row, module) for row, module in table.rows_of(table.load_modules(with_encoder))}
    assert list(rows) == ["text_encoder", "image_encoder", "vae_encoder", "vae_decoder", "unet"]
    row, module = rows["image_encoder"]
    assert row.plain
    part = row.make(module, with_encoder)
    write_graph(build_graph(part), tmp_path / "image_encoder.onnx")
    assert not unsupported(onnx.load(tmp_path / "image_encoder.onnx", load_external_data=False))

    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        reference = module(pixel_values=pixels, output_hidden_states=True)
    session = Session(tmp_path / "image_encoder.onnx", DeviceMemory(torch.device("cpu")))
    wanted = {"embedding": ((5, 24), torch.float32), "hidden": ((5, 17, 32), torch.float32)}
    embedding, hidden = session.run({"pixels": pixels}, wanted)
    torch.testing.assert_close(embedding, reference.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden, reference.hidden_states[-2], atol=1e-5, rtol=1e-4)


def test_an_export_is_of_the_encoder_too(with_encoder: ModelPackage, tmp_path: Path) -> None:
    bare = shutil.copytree(with_encoder.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("image_encoder"))
    package = ModelPackage.load(bare)
    assert "image_encoder" not in table.load_modules(package)
    assert package_hash(package) != package_hash(with_encoder)
