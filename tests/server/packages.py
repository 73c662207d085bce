"""Packages for the null backend, which reads their manifests alone."""

import shutil
from pathlib import Path

import yaml

from storyloom_model.package import MANIFEST_FILE


def with_references(package: Path, folder: Path) -> Path:
    """A copy of a package as one that takes references: the files are empty."""
    shutil.copytree(package, folder)
    file = folder / MANIFEST_FILE
    manifest = yaml.safe_load(file.read_text())
    manifest["name"] = "identity"
    manifest["encoders"] = {"faces": "faces", "image": "image_encoder"}
    manifest["identity_adapters"] = {
        "storynizor": {"file": "identity/storynizor.safetensors", "method": "storynizor", "keeps": ["face", "hair"]}
    }
    manifest["loras"] = {name: f"loras/{name}.safetensors" for name in ("ink", "wash")}
    manifest["defaults"]["identity_adapter"] = "storynizor"
    file.write_text(yaml.safe_dump(manifest))
    for part in ("faces", "image_encoder", "identity", "loras"):
        (folder / part).mkdir()
    for name in manifest["loras"]:
        (folder / "loras" / f"{name}.safetensors").touch()
    (folder / "identity" / "storynizor.safetensors").touch()
    return folder
