"""Every stage on a tiny recipe: a package comes out that the model loads and steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.package import MANIFEST_FILE, ModelPackage
from storyloom_model.prompts import ComposedPrompt, compose
from storyloom_training.config import SMOKE
from storyloom_training.package import write_package
from storyloom_training.pipeline import Pipeline
from storyloom_training.synchronizer import synchronizer_parameters


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_package(Pipeline(SMOKE, folder), folder / "package")
    return folder


def _job(denoiser: Denoiser, adapter: str) -> StoryJob:
    frames = []
    for seed, action in enumerate(("walking", "reading")):
        prompt = compose("", "{a} " + action, {"a": "a young girl with red braids"}, [])
        assert isinstance(prompt, ComposedPrompt)
        frames.append(FrameJob(prompt, seed))
    width, height = denoiser.manifest.sizes[0]
    return StoryJob(tuple(frames), "", 2, 3.0, "ddim", width, height, adapter)


def test_the_package_makes_pictures_with_each_adapter(run_folder: Path) -> None:
    denoiser = Denoiser.load(run_folder / "package")
    made = {}
    for adapter in ("amsa", "amsa-mask", "none"):
        state = denoiser.encode(_job(denoiser, adapter))
        while not state.done:
            denoiser.step([state])
        made[adapter] = state.latents
        assert denoiser.decode(state, [0, 1]).shape == (2, SMOKE.data.size, SMOKE.data.size, 3)
    assert not torch.equal(made["amsa"], made["none"])


def test_synchronizers_replace_attention_weights_alone(run_folder: Path) -> None:
    pipeline = Pipeline(SMOKE, run_folder)
    names = set(synchronizer_parameters(pipeline.base.unet))
    assert names
    assert all(".attn1." in name or ".attn2.to_q." in name or ".attn2.to_k." in name for name in names)
    assert set(pipeline.synchronizer("amsa")) == names


def test_training_a_synchronizer_leaves_the_base_as_it_was(run_folder: Path) -> None:
    pipeline = Pipeline(SMOKE, run_folder)
    before = {name: value.clone() for name, value in pipeline.base.unet.state_dict().items()}
    pipeline.synchronizer("amsa-mask")
    for name, value in pipeline.base.unet.state_dict().items():
        assert torch.equal(before[name], value), name


def test_a_finished_run_is_not_trained_again(run_folder: Path) -> None:
    lines = (run_folder / "base" / "losses.jsonl").read_text()
    assert Pipeline(SMOKE, run_folder).base is not None
    assert (run_folder / "base" / "losses.jsonl").read_text() == lines


def test_the_package_says_how_it_was_made(run_folder: Path) -> None:
    record = json.loads((run_folder / "package" / "training.json").read_text())
    assert record["recipe"]["name"] == "smoke"
    assert {"vae", "base", "decoder"} <= set(record["stages"])
    assert record["stages"]["base"]["step"] == SMOKE.base.steps


def test_training_goes_on_from_a_package(run_folder: Path, tmp_path: Path) -> None:
    package = ModelPackage.load(run_folder / "package")
    fewer = replace(SMOKE, base=replace(SMOKE.base, onward_steps=1))
    onward = Pipeline(fewer, tmp_path, package)
    published = load_file(package.folder / "vae" / "diffusion_pytorch_model.safetensors")
    base = onward.base
    for name, value in onward.vae.state_dict().items():
        assert torch.equal(value.half(), published[name]), f"{name} of the kept autoencoder has changed"
    before = load_file(package.folder / "unet" / "diffusion_pytorch_model.safetensors")
    moved = max((value - before[name].float()).abs().max().item() for name, value in base.unet.state_dict().items())
    assert 0 < moved < 0.01


def test_synchronizers_go_on_from_those_of_a_package(run_folder: Path, tmp_path: Path) -> None:
    package = ModelPackage.load(run_folder / "package")
    still = replace(SMOKE.synchronizer, learning_rate=0.0)
    onward = Pipeline(replace(SMOKE, synchronizer=still), tmp_path, package)
    before = load_file(package.folder / "unet" / "diffusion_pytorch_model.safetensors")
    then = load_file(package.adapter_file("amsa"))
    now, base = onward.synchronizer("amsa"), onward.base.unet.state_dict()
    assert len((tmp_path / "synchronizer" / "amsa" / "losses.jsonl").read_text().splitlines()) == 1
    for name, value in now.items():
        added = then[name].float() - before[name].float()
        assert torch.allclose(value - base[name], added, atol=1e-6), name


def test_encoders_come_along_and_identity_adapters_do_not(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "start"
    shutil.copytree(run_folder / "package", folder)
    for part in ("faces", "image_encoder", "identity"):
        (folder / part).mkdir()
        (folder / part / "weights.safetensors").write_bytes(b"weights")
    manifest = yaml.safe_load((folder / MANIFEST_FILE).read_text())
    manifest["encoders"] = {"faces": "faces", "image": "image_encoder"}
    manifest["identity_adapters"] = {"own": {"file": "identity/weights.safetensors", "method": "storynizor"}}
    (folder / MANIFEST_FILE).write_text(yaml.safe_dump(manifest))
    package = write_package(Pipeline(SMOKE, tmp_path / "run", ModelPackage.load(folder)), tmp_path / "package")
    assert package.manifest.encoders == ModelPackage.load(folder).manifest.encoders
    for part in ("faces", "image_encoder"):
        assert (package.folder / part / "weights.safetensors").read_bytes() == b"weights"
    assert not package.manifest.identity_adapters


def test_another_build_takes_over_what_fits(run_folder: Path, tmp_path: Path) -> None:
    package = ModelPackage.load(run_folder / "package")
    wider_text = replace(SMOKE, base=replace(SMOKE.base, steps=1, text_width=48))
    onward = Pipeline(wider_text, tmp_path, package)
    base = onward.base
    published = load_file(package.folder / "unet" / "diffusion_pytorch_model.safetensors")
    kept = "down_blocks.0.resnets.0.conv1.weight"
    assert (base.unet.state_dict()[kept] - published[kept].float()).abs().max() < 0.01
    autoencoder = load_file(package.folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(value.half(), autoencoder[n]) for n, value in onward.vae.state_dict().items())
    stages = {path.parent.name for path in tmp_path.rglob("losses.jsonl")}
    assert stages == {"vae", "text", "base"}
