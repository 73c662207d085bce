"""`storyloom models add` with ControlNets: packages of what others publish, that then follow poses and faces."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline
from PIL import Image

from storyloom_model.controlnets.loading import check_controlnet
from storyloom_model.denoiser import Denoiser
from storyloom_model.jobs import Identity
from storyloom_model.package import ModelPackage
from tests.model.published_files import full_size_unet, identity
from tests.model.published_models import SECOND_WIDTH, TEXT_WIDTH, write_folder
from tests.model.test_model_published_packages import adapter_file, added, refused
from tests.model.tiny import finish, tiny_job
from tests.model.tiny_control import LANDMARKS, picture, posed, tiny_controlnet

WIDTH = TEXT_WIDTH + SECOND_WIDTH


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A base in the form of SDXL, ControlNets for it, one for SD 1.5, and InstantID's adapter; the base's modules."""
    folder = tmp_path_factory.mktemp("published")
    modules = write_folder(folder / "base", sdxl=True)
    for seed, name in enumerate(("OpenPose_XL", "IdentityNet")):
        tiny_controlnet(modules["unet"], seed).save_pretrained(folder / name)
    small = write_folder(folder / "sd15")
    tiny_controlnet(small["unet"]).save_pretrained(folder / "small")
    adapter_file(folder, "instantid", "instantid.safetensors", WIDTH)
    return folder, modules


@pytest.fixture(scope="module")
def package(published: tuple[Path, dict[str, Any]]) -> Path:
    folder, _ = published
    said = added(
        "add", folder / "base", "--to", folder / "package", "--adapter", folder / "instantid.safetensors",
        "--controlnet", folder / "OpenPose_XL", "--identity-net", folder / "IdentityNet",
    )  # fmt: skip
    assert "openpose_xl" in said
    return folder / "package"


def test_they_are_in_the_manifest_as_they_were_in_their_folders(package: Path, published: tuple[Path, Any]) -> None:
    controlnets = ModelPackage.load(package).manifest.controlnets
    assert {name: (one.kind, one.scale, one.adapter) for name, one in controlnets.items()} == {
        "openpose_xl": ("pose", 1.0, "none"),
        "identitynet": ("identitynet", 0.8, "instantid"),
    }
    weights = "diffusion_pytorch_model.safetensors"
    for name, source in (("openpose_xl", "OpenPose_XL"), ("identitynet", "IdentityNet")):
        assert (package / controlnets[name].folder / weights).read_bytes() == (
            published[0] / source / weights
        ).read_bytes()


@torch.inference_mode()
def test_sdxl_with_a_pose_makes_what_diffusers_makes(package: Path, published: tuple[Path, dict[str, Any]]) -> None:
    folder, modules = published
    nets: Any = ControlNetModel
    pipelines: Any = StableDiffusionXLControlNetPipeline
    pipeline = pipelines(**modules, controlnet=nets.from_pretrained(folder / "OpenPose_XL"), add_watermarker=False)
    job = posed(tiny_job(1, steps=2, adapter=None), 5, net="openpose_xl", scale=0.5)
    denoiser = Denoiser.load(package)
    expected = pipeline(
        job.frames[0].prompt.text,
        negative_prompt=job.negative_prompt,
        image=Image.open(io.BytesIO(picture(5))),
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=job.guidance_scale,
        controlnet_conditioning_scale=0.5,
        latents=denoiser.encode(job).latents.clone(),
        output_type="latent",
    ).images
    torch.testing.assert_close(finish(denoiser, job).latents, expected, atol=1e-4, rtol=1e-4)


def test_instantid_follows_the_face_of_its_reference(package: Path) -> None:
    denoiser = Denoiser.load(package)

    def story(**fields: Any) -> torch.Tensor:
        size = np.full(2, 64, np.float32)
        who = Identity("mia", identity(1, **({"landmarks": LANDMARKS, "size": size} | fields)).to_bytes())
        return finish(
            denoiser, tiny_job(1, steps=2, adapter=None, identities=(who,), identity_adapter="instantid")
        ).latents

    here, there, unknown = story(), story(landmarks=LANDMARKS + 12), story(landmarks=None)
    for one, other in ((here, there), (here, unknown), (there, unknown)):
        assert float((one - other).abs().max()) > 1e-3


def test_one_is_added_to_a_package(package: Path, published: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "package")
    shutil.copytree(published[0] / "OpenPose_XL", tmp_path / "net")
    (tmp_path / "net/diffusion_pytorch_model.safetensors").rename(tmp_path / "weights.safetensors")
    net: Any = tiny_controlnet(published[1]["unet"], 4)
    torch.save(net.state_dict(), tmp_path / "net/diffusion_pytorch_model.bin")
    add = ("add-controlnet", tmp_path / "package", tmp_path / "net", "--name", "depth")
    assert "is a pickle, which can run code" in refused(*add)
    assert not (tmp_path / "package/controlnets/depth").exists()
    assert "converted" in added(*add, "--allow-pickle")
    assert list(ModelPackage.load(tmp_path / "package").manifest.controlnets) == ["openpose_xl", "identitynet", "depth"]
    assert "has a ControlNet called depth already" in refused(*add, "--allow-pickle")
    job = tiny_job(1, steps=1, adapter=None)
    denoiser = Denoiser.load(tmp_path / "package")
    one, other = (finish(denoiser, posed(job, 5, net=name)).latents for name in ("openpose_xl", "depth"))
    assert float((one - other).abs().max()) > 1e-3


def test_what_is_wrong_with_one_is_said(package: Path, published: tuple[Path, Any], tmp_path: Path) -> None:
    folder = published[0]
    base, to = ("add", folder / "base"), ("--to", tmp_path / "package")
    assert "is for another base model: its cross_attention_dim is 32, the UNet's 80" in refused(
        *base, *to, "--controlnet", folder / "small"
    )
    assert "has no such adapter: add it first" in refused(*base, *to, "--identity-net", folder / "IdentityNet")
    assert "is no folder of a ControlNet" in refused(*base, *to, "--controlnet", tmp_path)
    assert "holds a UNet2DConditionModel" in refused(*base, *to, "--controlnet", folder / "base/unet")
    shutil.copytree(folder / "OpenPose_XL", tmp_path / "cut")
    weights = tmp_path / "cut/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is cut off or damaged" in refused(*base, *to, "--controlnet", tmp_path / "cut")
    assert not (tmp_path / "package").exists()
    again = ("add-controlnet", package, folder / "IdentityNet", "--identity-net", "--name", "other")
    assert "has one for every such adapter already" in refused(*again)


@pytest.mark.parametrize(("base", "width", "blocks"), [("SD 1.5", 768, 12), ("SDXL", 2048, 9)])
def test_full_size_controlnets_fit_their_bases(base: str, width: int, blocks: int) -> None:
    unet = full_size_unet(base)
    with torch.device("meta"):
        net: Any = ControlNetModel.from_unet(unet, load_weights_from_unet=False)  # type: ignore[no-untyped-call]
    check_controlnet("test", net, unet, 8, width)
    assert len(net.controlnet_down_blocks) == blocks
