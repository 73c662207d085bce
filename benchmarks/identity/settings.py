"""The settings that are compared: with references by an identity adapter, or with words alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from storyloom_model.manifest import IdentityAdapterFile
from storyloom_model.package import MANIFEST_FILE, ModelPackage, write_manifest
from storyloom_training.identity.adapters.methods import METHODS


@dataclass(frozen=True)
class Setting:
    """How stories are made. ``adapter`` is an identity adapter, None for no references; ``described`` tells in words
    what the characters look like."""

    name: str
    adapter: str | None = None
    described: bool = False


NO_REFERENCE = Setting("no reference")
WORDS = Setting("words", described=True)
ADAPTERS = (
    "ip-adapter",
    "photomaker",
    "instantid",
    "storynizor",
    "storynizor-stacked",
    "storymaker",
    "storymaker-no-background",
    "storymaker-no-attention-loss",
)
"""In the order of the report; the names of ``METHODS``."""
PAIRS = (
    ("storynizor", "storynizor-stacked"),
    ("storymaker", "storymaker-no-attention-loss"),
    ("storymaker", "storymaker-no-background"),
)
"""Settings that the papers order: the first is to be better."""


def adapter_files(package: ModelPackage, folder: Path | None) -> dict[str, Path]:
    """The adapters that there are, in order: the package's own, and those of ``ADAPTERS`` in a folder."""
    own = {name: package.folder / one.file for name, one in package.manifest.identity_adapters.items()}
    beside = {} if folder is None else {name: folder / f"{name}.safetensors" for name in ADAPTERS}
    found = {name: file for name, file in beside.items() if file.exists()} | own
    return {name: found[name] for name in (*ADAPTERS, *own) if name in found}


def package_with(package: ModelPackage, adapters: dict[str, Path], folder: Path) -> ModelPackage:
    """The package with these adapters, as a folder of links; what was in it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in package.folder.iterdir():
        if part.name != MANIFEST_FILE:
            (folder / part.name).symlink_to(part.resolve())
    known = package.manifest.identity_adapters
    files = {}
    for name, file in adapters.items():
        place = f"compared/{name}.safetensors"
        files[name] = known.get(name) or IdentityAdapterFile(file=place, method=METHODS[name].name)
        if name not in known:
            (folder / "compared").mkdir(exist_ok=True)
            (folder / place).symlink_to(file.resolve())
    write_manifest(folder, package.manifest.model_copy(update={"identity_adapters": files}))
    return ModelPackage.load(folder)
