"""The weights of a model package: loading and saving the diffusers and transformers modules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

from storyloom_model.controlnets.loading import load_controlnet
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage, components_in, write_manifest


@dataclass(slots=True)
class Components:
    """The modules of a package. ``scheduler`` holds the noise schedule; each story builds its own solver from it.

    Those of the form of SDXL have a second text encoder with its tokenizer. ``controlnets`` are by name.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    controlnets: dict[str, Any] = field(default_factory=dict)


def load_components(package: ModelPackage, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Components:
    """Loads every module of a package in evaluation mode, from its own files, safetensors only.

    Args:
        package: a checked package.
        device: where the modules go, such as "cpu" or "cuda:0".
        dtype: of all weights.
    """

    paired = "text_encoder_2" in components_in(package.folder)

    def load(module: Any, part: str, dtype_option: str = "torch_dtype", dtype: torch.dtype = dtype) -> Any:
        options = {dtype_option: dtype, "local_files_only": True, "use_safetensors": True}
        return module.from_pretrained(package.folder / part, **options).to(device).eval().requires_grad_(False)

    schedulers: Any = DDIMScheduler
    with _no_progress_bars():
        return Components(
            unet=load(UNet2DConditionModel, "unet"),
            # SDXL's overflows in half precision.
            vae=load(AutoencoderKL, "vae", dtype=torch.float32 if paired and dtype == torch.float16 else dtype),
            text_encoder=load(CLIPTextModel, "text_encoder", "dtype"),
            tokenizer=package.load_tokenizer(),
            scheduler=schedulers.from_pretrained(package.folder / "scheduler", local_files_only=True),
            text_encoder_2=load(CLIPTextModelWithProjection, "text_encoder_2", "dtype") if paired else None,
            tokenizer_2=package.load_tokenizer("tokenizer_2") if paired else None,
            controlnets={
                name: load_controlnet(package.folder / one.folder, dtype).to(device)
                for name, one in package.manifest.controlnets.items()
            },
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing a bar per component on the standard error of a server."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def save_package(
    folder: Path,
    manifest: Manifest,
    components: Components,
    adapters: Mapping[str, Mapping[str, torch.Tensor]],
    dtype: torch.dtype | None = None,
) -> ModelPackage:
    """Writes a complete package and checks it.

    Args:
        folder: made if need be; files of the same names are replaced.
        manifest: its ``adapters`` say where each adapter goes.
        components: the modules to write. With ``dtype`` they are converted in place.
        adapters: by name, weights by UNet parameter name.
        dtype: storage type of the weights; None keeps what they have.

    Raises:
        ValueError: the adapters or ControlNets are not the manifest's.
    """
    if set(adapters) != set(manifest.adapters):
        raise ValueError(f"the manifest lists adapters {sorted(manifest.adapters)}, weights are for {sorted(adapters)}")
    if set(components.controlnets) != set(manifest.controlnets):
        listed, given = sorted(manifest.controlnets), sorted(components.controlnets)
        raise ValueError(f"the manifest lists controlnets {listed}, modules are {given}")
    second = ("text_encoder_2",) if components.text_encoder_2 is not None else ()
    modules = {part: getattr(components, part) for part in ("unet", "vae", "text_encoder", *second)}
    modules |= {manifest.controlnets[name].folder: module for name, module in components.controlnets.items()}
    for part, module in modules.items():
        (module if dtype is None else module.to(dtype)).save_pretrained(folder / part, safe_serialization=True)
        _forget_origin(folder / part / "config.json")
    components.tokenizer.save_pretrained(folder / "tokenizer")
    if second:
        components.tokenizer_2.save_pretrained(folder / "tokenizer_2")
    components.scheduler.save_pretrained(folder / "scheduler")
    for name, weights in adapters.items():
        file = folder / manifest.adapters[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {key: value.detach().to(dtype=dtype or value.dtype).contiguous() for key, value in weights.items()}
        save_file(kept, file)
    write_manifest(folder, manifest)
    return ModelPackage.load(folder)


def _forget_origin(config: Path) -> None:
    """Drops the folder that a module was loaded from, which diffusers writes down: it means nothing elsewhere."""
    values = json.loads(config.read_text())
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
