"""Packages on disk: what is written is what is read, and what is wrong is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from storyloom_model.components import load_components, save_package
from storyloom_model.denoiser import Denoiser
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage, PackageError, read_manifest, write_manifest
from tests.model.tiny import tiny_job, tiny_manifest


def manifest_with(tmp_path: Path, **changes: Any) -> Path:
    """A folder whose manifest is the tiny one but for some dotted keys."""
    content = tiny_manifest().model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        *parents, last = key.split("__")
        part = content
        for parent in parents:
            part = part[parent]
        part[last] = value
    (tmp_path / "storyloom.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_manifest_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, tiny_manifest())
    assert read_manifest(tmp_path) == tiny_manifest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, ["format"]),
        ({"sizes": []}, ["sizes"]),
        ({"sizes": [[60, 60]]}, ["sizes.0.0", "multiple of 8"]),
        ({"limits__max_frame": 3}, ["limits.max_frame", "Extra inputs"]),
        ({"defaults__solver": "heun"}, ["defaults.solver", "ddim"]),
        ({"defaults__width": 128}, ["width and height must be one of sizes"]),
        ({"defaults__steps": 1000}, ["steps must not exceed"]),
        ({"discovery": {"steps": 1000}}, ["discovery: steps must not exceed"]),
        ({"discovery": {"solver": "magic"}}, ["discovery.solver"]),
        ({"defaults__adapter": "gone"}, ["gone", "not listed"]),
        ({"adapters": {"a": "../a.safetensors"}}, ["inside the package"]),
        ({"adapters": {"none": "a.safetensors"}}, ["rename it"]),
        ({"attention": {"threshold": "fixed"}}, ["attention", "needs a value"]),
        ({"loras": {"a": "/a.safetensors"}}, ["loras.a", "inside the package"]),
        ({"loras": {"a": "a.bin"}}, ["loras.a", "a .safetensors file"]),
        ({"encoders": {"faces": "../faces", "image": "image"}}, ["encoders.faces", "inside the package"]),
        ({"encoders": {"faces": "faces"}}, ["encoders.image", "required"]),
        ({"identity_adapters": {"a": {"file": "a.safetensors"}}}, ["identity_adapters.a.method", "required"]),
        (
            {"identity_adapters": {"a": {"file": "a.safetensors", "method": "m", "keeps": ["nose"]}}},
            ["identity_adapters.a.keeps", "'face'"],
        ),
        ({"defaults__identity_adapter": "gone"}, ["identity_adapter gone", "not listed"]),
        ({"format": 2, "sizes": []}, ["format", "sizes"]),
    ],
)
def test_a_bad_manifest_names_every_bad_field(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PackageError) as caught:
        read_manifest(manifest_with(tmp_path, **changes))
    assert all(word in str(caught.value) for word in words)
    assert "storyloom.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"), [("a: [", "not valid YAML"), ("just text", "valid dictionary"), ("", "valid")]
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "storyloom.yaml").write_text(content)
    with pytest.raises(PackageError, match=word):
        read_manifest(tmp_path)


def test_a_folder_that_is_no_package_is_refused(tmp_path: Path, tiny_package: Path) -> None:
    with pytest.raises(PackageError, match="cannot be read"):
        ModelPackage.load(tmp_path)
    broken = shutil.copytree(tiny_package, tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    (broken / "id_synchronizer" / "amsa.safetensors").unlink()
    with pytest.raises(PackageError, match=r"lacks vae/config.json, id_synchronizer/amsa.safetensors"):
        ModelPackage.load(broken)


def test_a_saved_package_makes_the_same_pictures(tmp_path: Path, tiny_package: Path, denoiser: Denoiser) -> None:
    package = ModelPackage.load(tiny_package)
    adapters = {name: load_file(package.adapter_file(name)) for name in package.manifest.adapters}
    copy = save_package(tmp_path / "copy", package.manifest, load_components(package), adapters)
    assert copy.manifest == package.manifest

    def picture(engine: Denoiser) -> bytes:
        state = engine.encode(tiny_job(1, steps=1))
        engine.step([state])
        return engine.decode(state, [0]).tobytes()

    assert picture(Denoiser.load(copy.folder)) == picture(denoiser)


def test_a_saved_package_does_not_say_where_it_was_loaded_from(tmp_path: Path, tiny_package: Path) -> None:
    package = ModelPackage.load(tiny_package)
    adapters = {name: load_file(package.adapter_file(name)) for name in package.manifest.adapters}
    copy = save_package(tmp_path / "copy", package.manifest, load_components(package), adapters)
    for file in copy.folder.rglob("*.json"):
        assert str(tiny_package) not in file.read_text(), file


def test_half_precision_storage_loads_as_asked(tmp_path: Path, tiny_package: Path) -> None:
    package = ModelPackage.load(tiny_package)
    manifest = Manifest.model_validate(
        package.manifest.model_dump()
        | {"adapters": {}, "defaults": package.manifest.defaults.model_dump() | {"adapter": "none"}}
    )
    small = save_package(tmp_path / "half", manifest, load_components(package), {}, dtype=torch.float16)
    size, full = (
        sum(file.stat().st_size for file in folder.rglob("*.safetensors") if "id_sync" not in str(file))
        for folder in (small.folder, tiny_package)
    )
    assert size < 0.6 * full
    assert load_components(small).unet.dtype == torch.float32


def test_adapters_must_be_those_of_the_manifest(tmp_path: Path, tiny_package: Path) -> None:
    package = ModelPackage.load(tiny_package)
    with pytest.raises(ValueError, match="the manifest lists adapters"):
        save_package(tmp_path, package.manifest, load_components(package), {})


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({"no.such.weight": torch.zeros(1)}, "no such weight"),
        ({"conv_in.weight": torch.zeros(2, 2)}, r"conv_in.weight is \[2, 2\]"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, tiny_package: Path, weights: dict[str, torch.Tensor], word: str
) -> None:
    folder = shutil.copytree(tiny_package, tmp_path / "package")
    save_file(weights, folder / "id_synchronizer" / "amsa.safetensors")
    with pytest.raises(PackageError, match=word):
        Denoiser.load(folder)
    (folder / "id_synchronizer" / "amsa.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(PackageError, match="cannot be read as safetensors"):
        Denoiser.load(folder)


def test_more_tokens_than_the_text_encoder_reads_are_refused(tmp_path: Path, tiny_package: Path) -> None:
    folder = shutil.copytree(tiny_package, tmp_path / "package")
    with pytest.raises(PackageError, match="reads 77 tokens"):
        Denoiser.load(manifest_with(folder, limits__max_prompt_tokens=100))
