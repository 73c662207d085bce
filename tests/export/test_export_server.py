"""The real server on both backends: the same story gives the same pictures. A package names its own backend."""

import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from storyloom.v1 import story_pb2 as pb
from storyloom_export.artefact import ArtefactError
from storyloom_export.compare import psnr
from storyloom_export.denoiser import OnnxDenoiser
from storyloom_export.tensorrt.denoiser import TensorRtDenoiser
from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.package import MANIFEST_FILE, PackageError, read_manifest
from storyloom_server.engine.backend import SHORT_NAMES, load_backend, load_class
from tests.model.tiny import build_tiny_package
from tests.server.serving import NULL_BACKEND, generate, serving
from tests.server.test_server_pictures import pictures


def six_frames() -> pb.Story:
    prompts = ("{mia} walks", "{mia} and {bo} sit", "{bo} on the hill", "a dog", "{bo} and {mia}", "{mia} sits")
    cast = (("mia", "a girl with red hair"), ("bo", "an old man"))
    return pb.Story(
        characters=[pb.Character(name=name, description=text) for name, text in cast],
        frames=[pb.Frame(prompt=prompt) for prompt in prompts],
        settings=pb.Settings(seed=11, steps=3, preview_interval=2),
    )


def served(folder: Path, package: Path, backend: str) -> NDArray[Any]:
    folder.mkdir()
    with (
        serving(folder, package, "--threads", "1", backend=backend) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        return pictures(list(generate(channel, six_frames(), timeout=300)))


def test_six_frames_on_both_backends(exported_package: Path, tmp_path: Path) -> None:
    ours, theirs = (served(tmp_path / name, exported_package, name) for name in ("onnxruntime", "torch"))
    assert ours.shape == theirs.shape == (6, 64, 64, 3)
    values = [psnr(mine.astype(np.uint8), other.astype(np.uint8)) for mine, other in zip(ours, theirs, strict=True)]
    assert min(values) >= 40


def test_a_server_without_the_export_says_how_to_make_it(tmp_path: Path) -> None:
    with serving(tmp_path, Path("weights/storyloom-mini"), backend="onnxruntime", wait=False) as server:
        assert server.process.wait(240) == 1
    assert "storyloom-export onnx" in server.log


def naming(folder: Path, backend: str) -> Path:
    """A package without export that names its backend."""
    package = build_tiny_package(folder / "package")
    content = yaml.safe_load((package / MANIFEST_FILE).read_text())
    (package / MANIFEST_FILE).write_text(yaml.safe_dump(content | {"backend": backend}))
    return package


def test_a_package_names_its_backend_and_the_environment_goes_before_it(tmp_path: Path) -> None:
    package = naming(tmp_path, "onnxruntime")
    with serving(tmp_path, package, backend=None, wait=False) as server:
        assert server.process.wait(240) == 1
    assert "storyloom-export onnx" in server.log
    (tmp_path / "other").mkdir()
    with serving(tmp_path / "other", package, backend=None, environment={"STORYLOOM_BACKEND": NULL_BACKEND}) as server:
        assert server.address


def test_a_package_can_only_name_backends_that_come_with_the_server(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"backend: Input should be 'torch', 'onnxruntime'"):
        read_manifest(naming(tmp_path, "os:system"))


@pytest.mark.parametrize("name", list(SHORT_NAMES))
def test_every_short_name_is_a_backend(name: str) -> None:
    assert load_class(SHORT_NAMES[name]).runtime == name
    assert load_class(SHORT_NAMES["tensorrt"]) is TensorRtDenoiser


def test_the_backend_tensorrt_says_what_it_lacks(exported_package: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ArtefactError, match=r"TensorRT cannot be imported .* install it|is none that torch can use"):
        load_backend("tensorrt", exported_package, "cuda:0", ExecutionOptions())


def test_without_a_name_the_package_decides(exported_package: Path, tmp_path: Path) -> None:
    assert isinstance(load_backend(None, exported_package, "cpu", ExecutionOptions()), Denoiser)
    package = shutil.copytree(exported_package, tmp_path / "package")
    content = yaml.safe_load((package / MANIFEST_FILE).read_text())
    (package / MANIFEST_FILE).write_text(yaml.safe_dump(content | {"backend": "onnxruntime"}))
    assert isinstance(load_backend(None, package, "cpu", ExecutionOptions()), OnnxDenoiser)
    assert type(load_backend("torch", package, "cpu", ExecutionOptions())) is Denoiser
