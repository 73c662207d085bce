"""What an exported package is: valid files, named weights, one folder that is there as a whole or not at all."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from storyloom_export import onnx_files
from storyloom_export.artefact import RECORD_FILE, Artefact, ArtefactError, default_folder, package_hash
from storyloom_export.cli import app
from storyloom_export.functions import DOMAIN
from storyloom_export.tensorrt.operators import PLUGINS
from storyloom_model.adapters import load_adapter
from storyloom_model.package import ModelPackage, PackageError

COMPONENTS = [
    "resampler.storynizor", "resampler.storymaker", "text_encoder", "vae_encoder", "vae_decoder", "unet",
    "unet.amsa-mask", "unet.amsa",
]  # fmt: skip


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_passes_the_checker_and_says_where_it_is_from(
    artefact: Artefact, package: ModelPackage, name: str
) -> None:
    file = artefact.component(name)
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(file, load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["storyloom.package_hash"] == package_hash(package)
    assert metadata["storyloom.dtype"] == "float32"
    assert metadata["storyloom.version.torch"] == torch.__version__.split("+")[0] or torch.__version__


def test_the_unet_has_our_ops_with_bodies(artefact: Artefact) -> None:
    model = onnx.load(artefact.component("unet"), load_external_data=False)
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    assert used == {*PLUGINS, "GroupNormSilu"}
    assert used == {function.name for function in model.functions}


def test_no_file_holds_a_path_of_this_machine(artefact: Artefact) -> None:
    here = str(Path(__file__).parents[2]).encode()
    assert not [file for file in artefact.folder.iterdir() if here in file.read_bytes()]


def test_weights_keep_their_names_and_adapters_only_have_their_own(artefact: Artefact, package: ModelPackage) -> None:
    weights = load_adapter(package.adapter_file("amsa"))
    loaded = onnx.load(artefact.component("unet.amsa"))
    tensors = {tensor.name: tensor for tensor in loaded.graph.initializer}
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(numpy_helper.to_array(tensors[name]).copy()), weight)
    base, own = (artefact.folder / f"{name}.data" for name in ("unet", "unet.amsa"))
    assert own.stat().st_size <= sum(weight.numel() * 4 for weight in weights.values()) < base.stat().st_size


def test_an_adapter_of_another_unet_is_refused(artefact: Artefact, tmp_path: Path) -> None:
    shutil.copy(artefact.component("unet"), tmp_path / "unet.onnx")
    for name, weight in (("conv_in.weight", torch.zeros(3)), ("nothing.weight", torch.zeros(2, 2))):
        with pytest.raises(PackageError, match=f"adapter x is not for this UNet: {name}"):
            onnx_files.write_adapted(tmp_path / "unet.onnx", tmp_path / "unet.x.onnx", {name: weight}, "x")


def copied(exported_package: Path, folder: Path) -> Path:
    shutil.copytree(exported_package, folder / "package")
    return folder / "package"


def load(folder: Path) -> Artefact:
    return Artefact.load(default_folder(folder), ModelPackage.load(folder))


def test_damage_is_found_and_the_error_says_how_to_rebuild(exported_package: Path, tmp_path: Path) -> None:
    folder = copied(exported_package, tmp_path)
    data = default_folder(folder) / "unet.data"
    whole = data.read_bytes()
    rebuild = f"storyloom-export onnx {folder} {default_folder(folder)}"
    for content, complaint in ((whole[:-1], "truncated"), (whole[:-1] + bytes([whole[-1] ^ 1]), "corrupt")):
        data.write_bytes(content)
        with pytest.raises(ArtefactError, match=complaint) as raised:
            load(folder)
        assert rebuild in str(raised.value)
    data.unlink()
    with pytest.raises(ArtefactError, match=r"unet\.data is missing"):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("format", 2, "is of format 2, and this version of Storyloom reads 1"),
        ("package", "other", "is an export of other, not of tiny"),
        ("dtype", "int3", "damaged at dtype"),
        ("package_hash", "0" * 64, "exported from other weights"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    exported_package: Path, tmp_path: Path, key: str, value: object, complaint: str
) -> None:
    folder = copied(exported_package, tmp_path)
    file = default_folder(folder) / RECORD_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ArtefactError, match=complaint) as raised:
        load(folder)
    assert "storyloom-export onnx" in str(raised.value)


def test_an_export_of_weights_that_changed_is_refused(exported_package: Path, tmp_path: Path) -> None:
    folder = copied(exported_package, tmp_path)
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ArtefactError, match="exported from other weights"):
        load(folder)


def test_a_broken_or_absent_record_is_refused(exported_package: Path, tmp_path: Path) -> None:
    folder = copied(exported_package, tmp_path)
    file = default_folder(folder) / RECORD_FILE
    file.write_text(file.read_text()[:100])
    with pytest.raises(ArtefactError, match="cannot be read as JSON"):
        load(folder)
    file.unlink()
    with pytest.raises(ArtefactError, match="there is no export to use"):
        load(folder)


def test_the_command_line_verifies_and_inspects(exported_package: Path) -> None:
    verified = CliRunner().invoke(app, ["verify", str(exported_package), "--steps", "2"])
    assert verified.exit_code == 0, verified.output
    assert "unet values" in verified.output
    assert "unet with identities values" in verified.output
    assert "resampler.storymaker tokens" in verified.output
    assert "PSNR" in verified.output
    inspected = CliRunner().invoke(app, ["inspect", str(exported_package)])
    assert inspected.exit_code == 0, inspected.output
    assert "ai.storyloom::CrossFrameAttention" in inspected.output
    assert inspected.output.count("unknown to TensorRT: none") == len(COMPONENTS)
    assert "of unknown size" not in inspected.output


def test_the_command_line_refuses_a_missing_export(exported_package: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["verify", str(exported_package), str(tmp_path)])
    assert refused.exit_code == 2
    assert "storyloom-export onnx" in refused.output
