"""Files of weights as they come from elsewhere: whole, cut off, something else, dangerous."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from storyloom_model.identity.published.adapters import read_adapter
from storyloom_model.identity.published.files import read_metadata, read_weights
from storyloom_model.identity.published.layers import attention_layers
from storyloom_model.package import PackageError
from tests.model.published_files import adapter_shapes, nested, published_unet, random_weights


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return random_weights(adapter_shapes("ip-adapter", attention_layers(published_unet())))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_both_kinds_of_files_give_the_same_adapter(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "a.safetensors", {"by": "me"})
    torch.save(nested(weights), tmp_path / "a.bin")
    assert same(read_weights(tmp_path / "a.safetensors"), weights)
    assert same(read_weights(tmp_path / "a.bin", allow_pickle=True), weights)
    assert read_adapter("ip-adapter", "a", read_weights(tmp_path / "a.safetensors"), published_unet())
    assert read_metadata(tmp_path / "a.safetensors") == {"by": "me"}
    assert read_metadata(tmp_path / "a.bin") == {}


def test_records_of_a_training_are_left_out(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3, "notes": ["x"]}, tmp_path / "a.ckpt")
    assert same(read_weights(tmp_path / "a.ckpt", allow_pickle=True), {"state_dict.a": torch.ones(2)})


def test_pickles_are_refused_without_leave(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(nested(weights), tmp_path / "a.bin")
    with pytest.raises(PackageError, match=r"a\.bin is a pickle, which can run code .* give --allow-pickle"):
        read_weights(tmp_path / "a.bin")


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


@pytest.mark.parametrize("as_torch", [True, False])
def test_what_is_in_a_pickle_never_runs(tmp_path: Path, as_torch: bool) -> None:
    trap = {"image_proj": Trap(tmp_path / "sprung")}
    if as_torch:
        torch.save(trap, tmp_path / "a.bin")
    else:
        (tmp_path / "a.bin").write_bytes(pickle.dumps(trap))
    with pytest.raises(PackageError, match="holds more than tensors, which is not read" if as_torch else r"a\.bin"):
        read_weights(tmp_path / "a.bin", allow_pickle=True)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_cut_off_files_say_so(weights: dict[str, Tensor], tmp_path: Path, suffix: str, kept: float) -> None:
    file = tmp_path / f"a{suffix}"
    if suffix == ".bin":
        torch.save(nested(weights), file)
    else:
        save_file(weights, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(PackageError, match=r"a\..* is cut off or damaged .*; download it again"):
        read_weights(file, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"\n<!DOCTYPE html><html>Log in</html>", "is a web page, not weights"),
        ("a.bin", b"<html><body>404</body></html>", "is a web page, not weights"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        ("a.zip", b"PK", r"neither \.safetensors nor a torch file"),
        ("a.bin", b"random bytes, not a pickle", "cut off or damaged"),
        ("a.safetensors", b"\xff" * 64, "cut off or damaged"),
    ],
)
def test_other_files_say_what_they_are(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PackageError, match=message):
        read_weights(tmp_path / name, allow_pickle=True)


def test_a_file_without_tensors_says_so(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.bin")
    with pytest.raises(PackageError, match="holds no tensors"):
        read_weights(tmp_path / "a.bin", allow_pickle=True)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"a\.bin cannot be read: No such file"):
        read_weights(tmp_path / "a.bin")
