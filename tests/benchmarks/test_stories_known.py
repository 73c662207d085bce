"""Pictures are known by the files that had a part in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.stories.known import known_by_files
from storyloom import Consistency, Settings

MANIFEST = """
name: tiny
defaults: {identity_adapter: first}
identity_adapters:
  first: {file: identity/first.safetensors, method: storynizor}
  second: {file: identity/second.safetensors, method: instantid}
controlnets:
  net: {folder: nets/net, kind: identitynet, adapter: second}
"""
NONE, DEFAULT = Settings(identity_adapter="none"), Settings()
FIRST, SECOND = Settings(identity_adapter="first"), Settings(identity_adapter="second")

# Whose adapter the server chooses.
ROUNDS = Settings(consistency=Consistency(method="story-adapter"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("unet/model", "identity/first.safetensors", "identity/second.safetensors", "nets/net/model"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "storyloom.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("unet/model", (NONE, DEFAULT, FIRST, SECOND, ROUNDS)),
        ("identity/first.safetensors", (FIRST, DEFAULT, ROUNDS)),
        ("identity/second.safetensors", (SECOND, ROUNDS)),
        ("nets/net/model", (SECOND, ROUNDS)),
        ("README.md", ()),
    ],
)
def test_a_file_counts_where_it_is_used(package: Path, file: str, changed: tuple[Settings, ...]) -> None:
    before = known_by_files(package)
    (package / file).write_text("another")
    after = known_by_files(package)
    for settings in (NONE, DEFAULT, FIRST, SECOND, ROUNDS):
        assert (before(settings) != after(settings)) is (settings in changed)


def test_an_adapter_that_is_added_changes_nothing_for_others(package: Path) -> None:
    before = known_by_files(package)
    (package / "identity/third.safetensors").write_text("third")
    third = "  third: {file: identity/third.safetensors, method: ip-adapter}\ncontrolnets:"
    (package / "storyloom.yaml").write_text(MANIFEST.replace("controlnets:", third))
    after = known_by_files(package)
    assert [before(one) for one in (NONE, FIRST, SECOND)] == [after(one) for one in (NONE, FIRST, SECOND)]
    assert after(Settings(identity_adapter="third")) not in {after(one) for one in (NONE, FIRST, SECOND)}


def test_what_the_manifest_says_of_an_adapter_counts_for_it(package: Path) -> None:
    before = known_by_files(package)
    (package / "storyloom.yaml").write_text(MANIFEST.replace("method: storynizor", "method: storynizor, scale: 0.5"))
    after = known_by_files(package)
    assert before(FIRST) != after(FIRST)
    assert before(SECOND) == after(SECOND)
