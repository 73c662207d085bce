"""The components of a base model in diffusers layout, taken into a package and checked without loading them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from storyloom_model.adding.record import Record
from storyloom_model.identity.published.files import read_weights
from storyloom_model.identity.published.layers import listed
from storyloom_model.package import PackageError, components_in

_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Of the VAE's attention in files written before diffusers renamed it."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """How a component's weights are called, safe and pickled."""

    safe: str
    pickled: str


DIFFUSERS = _Weights("diffusion_pytorch_model", "diffusion_pytorch_model")
TRANSFORMERS = _Weights("model", "pytorch_model")
WEIGHTS = {
    "unet": DIFFUSERS,
    "vae": DIFFUSERS,
    "text_encoder": TRANSFORMERS,
    "text_encoder_2": TRANSFORMERS,
}


def take_components(source: Path, target: Path, record: Record, *, allow_pickle: bool) -> None:
    """Links or copies all components of a diffusers folder, and checks that the weights fit their configurations.

    Raises:
        PackageError: a component is missing, damaged, pickled without leave, or does not fit.
    """
    components = components_in(source)
    missing = [f"{part}/{file}" for part, file in components.items() if not (source / part / file).is_file()]
    if missing:
        raise PackageError(f"{source} is no complete diffusers folder; it lacks {', '.join(missing)}")
    for part in components:
        take_small_files(source / part, target / part)
    for part in (part for part in WEIGHTS if part in components):
        take_weights(source / part, target / part, WEIGHTS[part], record, allow_pickle=allow_pickle)
        check_weights(target / part, empty_component(target, part))


def take_small_files(source: Path, target: Path) -> None:
    """Copies configurations and vocabularies."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same file where the file system allows it, else a copy. Links are followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Writes safetensors, which hold no tensors that share memory, as torch files do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in weights.items()}, file)


def take_weights(source: Path, target: Path, names: _Weights, record: Record, *, allow_pickle: bool) -> None:
    """Links, copies or converts a component's weights.

    Raises:
        PackageError: there are none, or they are pickled without leave.
    """
    safe = f"{names.safe}.safetensors"
    index = source / f"{safe}.index.json"
    if index.is_file() and not (source / safe).is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        shutil.copyfile(index, target / index.name)
        for shard in shards:
            _take(source / Path(shard).name, target / Path(shard).name, record)
        return
    for name in (safe, f"{names.safe}.fp16.safetensors"):
        if (source / name).is_file():
            _take(source / name, target / safe, record)
            return
    pickled = source / f"{names.pickled}.bin"
    if not pickled.is_file():
        raise PackageError(f"{source} has no weights; it needs {safe}")
    record.add(target.name, pickled, "converted")
    save_weights(read_weights(pickled, allow_pickle=allow_pickle), target / safe)


def _take(source: Path, target: Path, record: Record) -> None:
    if not source.is_file():
        raise PackageError(f"{source} is missing; download the folder again")
    record.add(target.parent.name, source)
    link_or_copy(source, target)


def check_weights(folder: Path, module: Any) -> None:
    """Holds the weights in a folder against a module, which may be on the meta device.

    Raises:
        PackageError: some are missing, damaged or of another shape.
    """
    expected = {_present_name(key): tuple(value.shape) for key, value in module.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as content:
                names = content.keys()
                found |= {_present_name(key): tuple(content.get_slice(key).get_shape()) for key in names}
        except (OSError, SafetensorError) as error:
            raise PackageError(f"{file} is cut off or damaged ({error}); download it again") from error
    missing = sorted(set(expected) - set(found))
    if missing:
        raise PackageError(f"{folder} lacks weights that its configuration asks for: {listed(missing)}")
    wrong = sorted(key for key, shape in expected.items() if found[key] != shape)
    if wrong:
        key = wrong[0]
        raise PackageError(
            f"{folder}: {len(wrong)} weights do not fit the configuration, such as {key}, which is {found[key]} and "
            f"should be {expected[key]}"
        )


def empty_component(folder: Path, part: str) -> Any:
    """A component of a model in diffusers layout without contents, on the meta device."""
    config = json.loads((folder / part / "config.json").read_text())
    models: Any = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    texts: Any = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    with torch.device("meta"):
        return models[part].from_config(config) if part in models else texts[part](CLIPTextConfig(**config))


def _present_name(key: str) -> str:
    """What a weight is called now, with and without the root that text encoders had."""
    if ".attentions." in key:
        for old, new in _OLD_NAMES.items():
            key = key.replace(old, new)
    return key.removeprefix("text_model.")
