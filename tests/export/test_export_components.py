"""Components beyond those that every package has: what looks at references, and what makes tokens of what it says."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from storyloom_export import table
from storyloom_export.artefact import package_hash
from storyloom_export.components import Exportable
from storyloom_export.graph import build_graph
from storyloom_export.memory import DeviceMemory
from storyloom_export.onnx_files import write_graph
from storyloom_export.resamplers import resampler
from storyloom_export.session import Session
from storyloom_export.tensorrt.operators import unsupported
from storyloom_model.identity.adapter import StreamMaker
from storyloom_model.identity.perceiver import PerceiverSizes, Resampler
from storyloom_model.identity.published.ip_adapter import FacePlusProjection
from storyloom_model.identity.published.makers import ReferenceTokens
from storyloom_model.manifest import Encoders
from storyloom_model.package import ModelPackage, PackageError, write_manifest
from tests.export.identities import storymaker
from tests.model.tiny import build_tiny_package
from tests.model.tiny_identity import TinyMaker


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """A package with a vision tower of random weights, in a folder that its manifest names."""
    folder = build_tiny_package(tmp_path_factory.mktemp("encoder") / "package")
    sizes: Any = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=24,
    )  # fmt: skip
    kind: Any = CLIPVisionModelWithProjection
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(sizes).save_pretrained(folder / "sees", safe_serialization=True)
    (folder / "faces").mkdir()
    manifest = ModelPackage.load(folder).manifest
    write_manifest(folder, manifest.model_copy(update={"encoders": Encoders(faces="faces", image="sees")}))
    return ModelPackage.load(folder)


def run(part: Exportable, folder: Path, inputs: dict[str, torch.Tensor], *shapes: tuple[int, ...]) -> list[Any]:
    """The outputs of a component's graph, of which TensorRT's parser knows every op."""
    write_graph(build_graph(part), folder / "part.onnx")
    assert not unsupported(onnx.load(folder / "part.onnx", load_external_data=False))
    session = Session(folder / "part.onnx", DeviceMemory(torch.device("cpu")))
    return session.run(inputs, {name: (shape, torch.float32) for name, shape in zip(part.outputs, shapes, strict=True)})


def test_a_vision_tower_is_a_component_of_a_package_that_names_one(with_encoder: ModelPackage, tmp_path: Path) -> None:
    rows = {row.name: (row, module) for row, module in table.rows_of(table.load_modules(with_encoder))}
    assert list(rows) == ["text_encoder", "image_encoder", "vae_encoder", "vae_decoder", "unet"]
    row, module = rows["image_encoder"]
    assert row.plain
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        reference = module(pixel_values=pixels, output_hidden_states=True)
    part = row.make(module, with_encoder)
    embedding, hidden = run(part, tmp_path, {"pixels": pixels}, (5, 24), (5, 17, 32))
    torch.testing.assert_close(embedding, reference.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden, reference.hidden_states[-2], atol=1e-5, rtol=1e-4)


def test_an_export_is_of_the_encoder_too(with_encoder: ModelPackage, tmp_path: Path) -> None:
    copy = ModelPackage.load(shutil.copytree(with_encoder.folder, tmp_path / "copy"))
    assert package_hash(copy) == package_hash(with_encoder)
    config = copy.folder / "sees" / "config.json"
    whole = config.read_text()
    config.write_text(whole + "\n")
    assert package_hash(copy) != package_hash(with_encoder)
    config.write_text(whole)
    (copy.folder / "sees" / "model.safetensors").unlink()
    with pytest.raises(PackageError, match="can't be loaded as CLIPVisionModelWithProjection"):
        table.load_modules(copy)


def test_an_export_is_of_the_identity_adapters_too(package: ModelPackage, tmp_path: Path) -> None:
    copy = ModelPackage.load(
        shutil.copytree(package.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("onnx"))
    )  # fmt: skip
    assert package_hash(copy) == package_hash(package)
    file = copy.folder / copy.manifest.identity_adapters["storynizor"].file
    file.write_bytes(file.read_bytes() + b" ")
    assert package_hash(copy) != package_hash(package)


def face_plus() -> ReferenceTokens:
    sizes = PerceiverSizes(24, 20, 24, heads=3, depth=1, head_width=8)
    return ReferenceTokens(FacePlusProjection(12, 24, 2, sizes, shortcut=True), ("face", "face_states"))


def plus() -> ReferenceTokens:
    return ReferenceTokens(
        Resampler(PerceiverSizes(24, 20, 32, heads=3, depth=1, head_width=8), 4), ("character_states",)
    )


@pytest.mark.parametrize(
    ("make", "shapes", "tokens"),
    [
        (face_plus, {"face": (3, 12), "face_states": (3, 7, 20)}, (3, 2, 24)),
        (plus, {"character_states": (3, 7, 20)}, (3, 4, 32)),
        (storymaker, {"face": (3, 16), "face_states": (3, 7, 24), "character_states": (3, 7, 24)}, (20, 32)),
    ],
)
def test_a_resampler_makes_its_tokens(make: Any, shapes: Any, tokens: tuple[int, ...], tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        maker: StreamMaker = make().eval()
        inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    part = resampler(maker)
    with torch.inference_mode():
        expected = part.module(**inputs)
    (found,) = run(part, tmp_path, inputs, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_maker_of_an_unknown_kind_is_left_to_torch() -> None:
    assert list(table.rows_of({"resampler.own": TinyMaker()})) == []
    with pytest.raises(ValueError, match="of the kind TinyMaker cannot be exported"):
        resampler(TinyMaker())
