"""The built-in model package: complete, small enough for the repository, and described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from storyloom_model.package import ModelPackage

FOLDER = Path(__file__).resolve().parents[2] / "weights" / "storyloom-mini"


def test_it_is_a_complete_package() -> None:
    package = ModelPackage.load(FOLDER)
    assert package.manifest.name == "storyloom-mini"
    assert set(package.manifest.adapters) == {"amsa", "amsa-mask"}
    assert package.manifest.defaults.adapter == "amsa-mask"


def test_it_stays_under_80_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 80e6


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "id_synchronizer"])
def test_weights_are_float16(part: str) -> None:
    for file in (FOLDER / part).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, file


def test_the_card_and_the_record_say_how_it_was_made() -> None:
    record = json.loads((FOLDER / "training.json").read_text())
    # It was trained on from an earlier package.
    assert record["stages"]["base"]["step"] == record["recipe"]["base"]["onward_steps"]
    card = (FOLDER / "README.md").read_text()
    for topic in ("Data", "Training", "Measured", "Limits", "Licence"):
        assert f"## {topic}" in card
