"""Identity adapters as files: what is written is what is read, and what does not fit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.adapter import IdentityAdapter, LowRank
from storyloom_model.identity.loading import load_identity_adapter, save_identity_adapter
from storyloom_model.identity.methods import READERS
from storyloom_model.package import ModelPackage, PackageError
from tests.model.tiny import tiny_unet
from tests.model.tiny_identity import TinyMaker, tiny_layers, tiny_low_rank


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return tiny_unet().requires_grad_(False)


@pytest.fixture
def file(unet: Any, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    adapter = IdentityAdapter(
        "faces", TinyMaker(3), tiny_layers(unet), scale=0.5, low_rank=tiny_low_rank(unet, "attn1.to_q"), encoders="e"
    )
    save_identity_adapter(tmp_path / "folder" / "faces.safetensors", adapter, "tiny")
    return tmp_path / "folder" / "faces.safetensors"


def changed(file: Path, metadata: dict[str, str] | None = None, **weights: Any) -> Path:
    """The file with other metadata, and weights replaced; None takes one away."""
    with safe_open(file, "pt") as content:
        before = content.metadata()
    kept = load_file(file)
    for name, value in weights.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    save_file(kept, file, before | (metadata or {}))
    return file


def test_what_is_written_is_what_is_read(unet: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    low_rank = {name: LowRank(one.down, one.up, 0.5) for name, one in tiny_low_rank(unet, "attn1.to_q").items()}
    before = IdentityAdapter("faces", TinyMaker(3, shared=True), tiny_layers(unet), low_rank=low_rank, encoders="e")
    save_identity_adapter(tmp_path / "a.safetensors", before, "tiny")
    after = load_identity_adapter(tmp_path / "a.safetensors", "faces", "tiny", unet, scale=0.7)
    assert (after.name, after.scale, after.encoders) == ("faces", 0.7, "e")
    assert after.maker.config == {"tokens": 3, "shared": True}
    assert not any(value.requires_grad for value in after.maker.parameters())
    weights = before.maker.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in after.maker.state_dict().items())
    for one, other in zip(before.layers, after.layers, strict=True):
        assert torch.equal(one.to_k, other.to_k)
        assert torch.equal(one.to_v, other.to_v)
    for name, change in after.low_rank.items():
        expected = low_rank[name]
        torch.testing.assert_close(change.scale * change.up @ change.down, 0.5 * expected.up @ expected.down)
    assert after.low_rank.keys() == low_rank.keys()


def test_an_adapter_takes_the_dtype_of_its_unet(file: Path) -> None:
    short = tiny_unet().to(torch.bfloat16)
    adapter = load_identity_adapter(file, "faces", "tiny", short)
    assert {layer.to_k.dtype for layer in adapter.layers} == {torch.bfloat16}
    assert {value.dtype for value in adapter.maker.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("metadata", "weights", "words"),
    [
        ({"format": "9"}, {}, "has format 9; this version reads 1"),
        ({"method": "other"}, {}, "of the method other, the manifest says tiny"),
        ({"config": json.dumps({"legs": 2})}, {}, "does not fit its method: .*legs"),
        ({"config": "{"}, {}, "does not fit its method"),
        ({"config": json.dumps({"tokens": 4})}, {}, "does not fit its method: .*size mismatch"),
        ({}, {"maker.background": None}, 'does not fit its method: .*Missing key.*"background"'),
        ({}, {"extra": torch.zeros(1)}, "a weight that its form does not know: extra"),
        ({}, {"layers.0.to_k": None}, "pairs to_k and to_v, counted from 0; see 0.to_k"),
        ({}, {"layers.9.to_k": torch.zeros(64, 32), "layers.9.to_v": torch.zeros(64, 32)}, "counted from 0"),
        ({}, {"layers.0.to_k": torch.zeros(64, 32)}, r"not for this UNet: down_blocks.0.*\[32, 32\]; got \[64, 32\]"),
        ({}, {"layers.1.to_v": torch.zeros(32, 8)}, r"not for this UNet: down_blocks.1"),
        ({}, {"low_rank.conv_in.weight.down": torch.zeros(2, 36)}, "every change is a pair PARAMETER.down and"),
        (
            {},
            {"low_rank.gone.down": torch.zeros(2, 36), "low_rank.gone.up": torch.zeros(32, 2)},
            "it changes gone, which the UNet has not",
        ),
        (
            {},
            {"low_rank.conv_in.weight.down": torch.zeros(2, 4), "low_rank.conv_in.weight.up": torch.zeros(32, 2)},
            r"conv_in.weight is \[32, 4, 3, 3\], hence needs down \[r, 36\] and up \[32, r\]; got \[2, 4\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    unet: Any, file: Path, metadata: dict[str, str], weights: dict[str, Any], words: str
) -> None:
    with pytest.raises(PackageError, match=f"(?s){words}"):
        load_identity_adapter(changed(file, metadata, **weights), "faces", "tiny", unet)


def test_an_adapter_of_another_base_model_is_refused(unet: Any, file: Path) -> None:
    last = len(tiny_layers(unet)) - 1
    changed(file, **{f"layers.{last}.to_k": None, f"layers.{last}.to_v": None})
    with pytest.raises(PackageError, match=f"has {last} layers, the UNet {last + 1}; it is for another base model"):
        load_identity_adapter(file, "faces", "tiny", unet)


def test_a_file_of_unknown_form_or_none_is_refused(unet: Any, file: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(PackageError, match="in no form of the method tiny; known are"):
        load_identity_adapter(tmp_path / "plain.safetensors", "faces", "tiny", unet)
    file.write_bytes(file.read_bytes()[:100])
    for broken in (file, tmp_path / "gone.safetensors"):
        with pytest.raises(PackageError, match="cannot be read as safetensors"):
            load_identity_adapter(broken, "faces", "tiny", unet)


def test_published_forms_have_their_readers(unet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "published.safetensors")

    def read(method: str, name: str, weights: Any, unet: Any) -> IdentityAdapter:
        assert (method, name, list(weights)) == ("theirs", "faces", ["a"])
        return IdentityAdapter(name, TinyMaker(), tiny_layers(unet), scale=0.8)

    monkeypatch.setitem(READERS, "theirs", read)
    adapter = load_identity_adapter(tmp_path / "published.safetensors", "faces", "theirs", unet, scale=0.5)
    assert adapter.scale == 0.4


def test_a_package_names_what_it_lacks(identity_package: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(identity_package, tmp_path / "broken")
    manifest = yaml.safe_load((broken / "storyloom.yaml").read_text())
    manifest["encoders"] = {"faces": "faces", "image": "image_encoder"}
    (broken / "storyloom.yaml").write_text(yaml.safe_dump(manifest))
    (broken / "faces").mkdir()
    (broken / "identity" / "faces.safetensors").unlink()
    (broken / "style.safetensors").unlink()
    with pytest.raises(PackageError, match=r"lacks style\.safetensors, identity/faces\.safetensors, image_encoder;"):
        ModelPackage.load(broken)


def test_another_file_is_another_package(identity_package: Path, tmp_path: Path) -> None:
    """A checkpoint of one is not for the other."""
    other = shutil.copytree(identity_package, tmp_path / "other")
    before = Denoiser.load(other)._package_fingerprint
    for name in ("identity/faces", "line"):
        file = other / f"{name}.safetensors"
        weights = load_file(file)
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
        save_file({key: value + 1 for key, value in weights.items()}, file, metadata)
        after = Denoiser.load(other)._package_fingerprint
        assert after != before
        before = after
