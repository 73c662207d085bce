"""Packages in the form of SDXL: two text encoders, a pooled text and sizes, and identities beside them."""

import pytest
import torch

from storyloom_export.artefact import Artefact, default_folder, package_hash
from storyloom_export.denoiser import OnnxDenoiser
from storyloom_export.onnx_files import export_package
from storyloom_export.verify import verify
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.adapter import IdentityAdapter, LayerProjections
from storyloom_model.identity.loading import save_identity_adapter
from storyloom_model.identity.storynizor import InjectorSizes, StorynizorInjector
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage, write_manifest
from tests.export.identities import FACE, STATES, identity
from tests.model.published_models import SECOND_WIDTH, TEXT_WIDTH, write_folder
from tests.model.tiny import finish, tiny_job, tiny_manifest

WIDTH = TEXT_WIDTH + SECOND_WIDTH


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """A package in the form of SDXL with an identity adapter, and its export."""
    folder = tmp_path_factory.mktemp("sdxl")
    with torch.random.fork_rng(devices=[]):
        unet = write_folder(folder, sdxl=True)["unet"]
        torch.manual_seed(5)
        widths = [module.to_k.out_features for name, module in unet.named_modules() if name.endswith("attn2")]
        layers = [LayerProjections(0.2 * torch.randn(own, WIDTH), 0.2 * torch.randn(own, WIDTH)) for own in widths]
        maker = StorynizorInjector(InjectorSizes(STATES, WIDTH, 2, FACE, depth=1, heads=2, head_dim=8))
    save_identity_adapter(folder / "faces.safetensors", IdentityAdapter("faces", maker, layers), "storynizor")
    manifest = tiny_manifest().model_dump(mode="json", exclude_none=True)
    manifest["adapters"], manifest["defaults"]["adapter"] = {}, "none"
    manifest["identity_adapters"] = {"faces": {"file": "faces.safetensors", "method": "storynizor"}}
    write_manifest(folder, Manifest.model_validate(manifest))
    package = ModelPackage.load(folder)
    export_package(package, default_folder(folder))
    return package


@pytest.mark.slow
def test_sdxl_stories_are_those_that_torch_makes(sdxl: ModelPackage) -> None:
    exported, reference = (kind.load(sdxl.folder) for kind in (OnnxDenoiser, Denoiser))
    who = {"identities": (identity("mia", 1),), "identity_adapter": "faces"}
    for settings in ({"cross_frame": False}, {"width": 96}, {**who, "cross_frame": False}):
        job = tiny_job(2, steps=2, adapter="none", **settings)
        ours, theirs = (finish(denoiser, job).latents for denoiser in (exported, reference))
        assert (ours - theirs).abs().max() < (1e-3 if "cross_frame" in settings else 1e-2)


@pytest.mark.slow
def test_sdxl_is_verified_and_hashed_with_its_second_text_encoder(sdxl: ModelPackage) -> None:
    artefact = Artefact.load(default_folder(sdxl.folder), sdxl)
    report = verify(sdxl, artefact, steps=1)
    assert not report.failures
    names = {found.name for found in report.differences}
    assert {"text_encoder hidden", "text_encoder_2 hidden", "text_encoder_2 pooled", "unet values"} <= names
    before = package_hash(sdxl)
    config = sdxl.folder / "text_encoder_2" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert package_hash(sdxl) != before
