"""Published adapters and LoRA, taken into a package: checked against its UNet, and kept as safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyloom_model.adding.components import empty_component, save_weights
from storyloom_model.adding.record import Record
from storyloom_model.identity.parts import PARTS
from storyloom_model.identity.published.adapters import (
    CHARACTER_ADAPTER,
    EMPTY_STATES,
    keeps_of,
    method_of,
    read_adapter,
    reads_states,
)
from storyloom_model.identity.published.files import read_metadata, read_weights
from storyloom_model.identity.published.forms import Form, detect
from storyloom_model.identity.published.lora import UNET, LoraSettings, read_lora
from storyloom_model.manifest import IdentityAdapterFile, Manifest
from storyloom_model.package import PackageError, components_in

_FULL_TOKENS = 257
"""Of a reference in the full form: all states of an image encoder for 224 pixels and patches of 14."""
_PART_TOKENS = {Form.IP_ADAPTER: 4, Form.IP_ADAPTER_PLUS: 16}
"""Of a part of one reference, by the form that Character-Adapter uses."""
_NO_START = "{} writes nobody into the text, as PhotoMaker does; leave --start out"


def take_adapter(
    folder: Path,
    manifest: Manifest,
    file: Path,
    record: Record,
    *,
    name: str | None = None,
    method: str | None = None,
    start: float | None = None,
    allow_pickle: bool = False,
) -> Manifest:
    """Takes an identity adapter or a LoRA into a package.

    Args:
        folder: of the package, with its components in it.
        manifest: of the package; it is not written.
        file: in a published form.
        record: gets the file.
        name: for the manifest; None: made of the file's name.
        method: of an identity adapter; None: told by its weights and, where they do not tell it, by its name.
        start: of one that writes persons into the text, see ``IdentityAdapterFile``; None: as it is published.
        allow_pickle: see ``read_weights``.

    Returns:
        The manifest with the adapter in it.

    Raises:
        PackageError: the file is damaged or in no known form, or not for this package.
    """
    name = name or name_of(file)
    if name in manifest.identity_adapters or name in manifest.loras:
        raise PackageError(f"the package has an adapter called {name} already; choose another name with --name")
    weights = read_weights(file, allow_pickle=allow_pickle)
    form = detect(weights)
    if form == Form.LORA:
        if start is not None:
            raise PackageError(_NO_START.format(name))
        return _take_lora(folder, manifest, file, record, name, weights)
    method = method or method_of(form, file.name)
    adapter = read_adapter(method, name, weights, empty_component(folder, UNET))
    if start is not None and adapter.words is None:
        raise PackageError(_NO_START.format(name))
    note = method
    if reads_states(method):
        states = _empty_states(folder, manifest)
        if states is None:
            note += "; zeros for the negative prompt, for want of an image encoder"
        else:
            weights = {**weights, EMPTY_STATES: states}
    record.add(f"identity adapter {name}", file, note)
    path = f"identity/{name}.safetensors"
    save_weights(weights, folder / path)
    added = IdentityAdapterFile(file=path, method=method, start=start, keeps=keeps_of(method))
    limits = manifest.limits
    each = _FULL_TOKENS if form == Form.IP_ADAPTER_FULL else 0
    if method == CHARACTER_ADAPTER:
        each = len(PARTS) * _PART_TOKENS[form]
    most = max(limits.max_identity_tokens, limits.max_characters * each)
    limits = limits.model_copy(update={"max_identity_tokens": most})
    adapters = {**manifest.identity_adapters, name: added}
    return manifest.model_copy(update={"identity_adapters": adapters, "limits": limits})


def _take_lora(
    folder: Path, manifest: Manifest, file: Path, record: Record, name: str, weights: Mapping[str, Tensor]
) -> Manifest:
    parts = [part for part in (UNET, "text_encoder", "text_encoder_2") if part in components_in(folder)]
    modules = {part: empty_component(folder, part) for part in parts}
    changes = read_lora(name, weights, modules, _settings(file))
    if UNET not in changes:
        raise PackageError(f"LoRA {name} changes nothing of the UNet; such cannot be served")
    others = sum(len(found) for part, found in changes.items() if part != UNET)
    record.add(f"LoRA {name}", file, f"{others} changes of the text encoder left out" if others else "")
    path = f"loras/{name}.safetensors"
    halves = {f"{key}.down": change.down for key, change in changes[UNET].items()}
    halves |= {f"{key}.up": change.scale * change.up for key, change in changes[UNET].items()}
    save_weights(halves, folder / path)
    return manifest.model_copy(update={"loras": {**manifest.loras, name: path}})


def _settings(file: Path) -> LoraSettings | None:
    """What peft's configuration says, in the file or beside it."""
    kept = read_metadata(file).get("lora_adapter_metadata")
    if kept is not None:
        prefix = f"{UNET}."
        return LoraSettings.of({k.removeprefix(prefix): v for k, v in json.loads(kept).items() if k.startswith(prefix)})
    beside = file.with_name("adapter_config.json")
    return LoraSettings.of(json.loads(beside.read_text())) if beside.is_file() else None


@torch.inference_mode()
def _empty_states(folder: Path, manifest: Manifest) -> Tensor | None:
    """What the package's image encoder says of an empty picture, [S, width]; None without one of transformers."""
    if manifest.encoders is None or not (folder / manifest.encoders.image / "config.json").is_file():
        return None
    from transformers import CLIPVisionModelWithProjection

    models: Any = CLIPVisionModelWithProjection
    encoder = models.from_pretrained(folder / manifest.encoders.image, local_files_only=True, use_safetensors=True)
    side = encoder.config.image_size
    states: Tensor = encoder(torch.zeros(1, 3, side, side), output_hidden_states=True).hidden_states[-2][0]
    return states.clone()


def name_of(file: Path) -> str:
    """What a file or folder is called in a manifest that is told no name."""
    return re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._")[:64] or "adapter"
