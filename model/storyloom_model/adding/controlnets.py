"""ControlNets in diffusers' form, taken into a package and checked against its UNet without loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from storyloom_model.adding.adapters import name_of
from storyloom_model.adding.components import DIFFUSERS, check_weights, empty_component, take_small_files, take_weights
from storyloom_model.adding.record import Record
from storyloom_model.controlnets.loading import check_controlnet
from storyloom_model.identity.published.instantid import SCALE
from storyloom_model.manifest import NO_ADAPTER, ControlKind, ControlNetFolder, Manifest
from storyloom_model.package import PackageError

_READ_BY_IDENTITYNET = "instantid"


def take_controlnet(
    folder: Path,
    manifest: Manifest,
    source: Path,
    record: Record,
    *,
    kind: ControlKind = "pose",
    name: str | None = None,
    allow_pickle: bool = False,
) -> Manifest:
    """Takes a ControlNet into a package; nothing of it is left behind where that fails.

    Args:
        folder: of the package, with its components in it.
        manifest: of the package; it is not written.
        source: folder of a ControlNetModel.
        record: gets the files.
        kind: "identitynet" for InstantID's, which reads the tokens of the package's adapter of that method.
        name: for the manifest; None: "identitynet", or made of the source's name.
        allow_pickle: see ``read_weights``.

    Returns:
        The manifest with the ControlNet in it.

    Raises:
        PackageError: the folder is no complete ControlNet, or not for this package.
    """
    name = name or (kind if kind == "identitynet" else name_of(source))
    if name in manifest.controlnets:
        raise PackageError(f"the package has a ControlNet called {name} already; choose another name with --name")
    adapter = _adapter_read_by(kind, manifest)
    net = _empty_controlnet(source)
    vae = json.loads((folder / "vae" / "config.json").read_text())
    check_controlnet(name, net, empty_component(folder, "unet"), 2 ** (len(vae["block_out_channels"]) - 1))
    path = f"controlnets/{name}"
    try:
        take_small_files(source, folder / path)
        take_weights(source, folder / path, DIFFUSERS, record, allow_pickle=allow_pickle)
        check_weights(folder / path, net)
    except PackageError:
        shutil.rmtree(folder / path)
        raise
    scale = 1.0 if kind == "pose" else SCALE
    added = ControlNetFolder(folder=path, kind=kind, scale=scale, adapter=adapter)
    return manifest.model_copy(update={"controlnets": {**manifest.controlnets, name: added}})


def _adapter_read_by(kind: ControlKind, manifest: Manifest) -> str:
    if kind == "pose":
        return NO_ADAPTER
    made = [name for name, one in manifest.identity_adapters.items() if one.method == _READ_BY_IDENTITYNET]
    read = {one.adapter for one in manifest.controlnets.values()}
    free = [name for name in made if name not in read]
    if not free:
        problem = "has one for every such adapter already" if made else "has no such adapter: add it first"
        raise PackageError(f"IdentityNet reads what InstantID's adapter makes of a face, and the package {problem}")
    return free[0]


def _empty_controlnet(source: Path) -> Any:
    """The ControlNet without contents, on the meta device."""
    try:
        config = json.loads((source / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise PackageError(f"{source} is no folder of a ControlNet: its config.json cannot be read") from error
    found = config.get("_class_name", "ControlNetModel")
    if found != "ControlNetModel":
        raise PackageError(f"{source} holds a {found}; take a ControlNet in diffusers' form (ControlNetModel)")
    nets: Any = ControlNetModel
    with torch.device("meta"):
        return nets.from_config(config)
