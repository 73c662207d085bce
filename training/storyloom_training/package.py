"""Stage 5: everything that was trained, written as a model package."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from storyloom_model.components import Components, save_package
from storyloom_model.manifest import Defaults, Limits, Manifest
from storyloom_model.package import ModelPackage
from storyloom_training.diffusion import build_scheduler
from storyloom_training.pipeline import Pipeline

ADAPTERS = ("amsa-mask", "amsa")


def manifest(pipeline: Pipeline) -> Manifest:
    size = pipeline.recipe.data.size
    return Manifest(
        name="storyloom-mini",
        description="Illustrated people in everyday scenes, trained from nothing on procedural pictures",
        sizes=((size, size),),
        defaults=Defaults(steps=25, guidance_scale=4.0, solver="ddim", width=size, height=size, adapter="amsa-mask"),
        limits=Limits(
            max_frames=240,
            window_frames=8,
            max_characters=3,
            max_steps=100,
            max_prompt_tokens=pipeline.recipe.base.tokens,
        ),
        adapters={adapter: f"id_synchronizer/{adapter}.safetensors" for adapter in ADAPTERS},
        encoders=None if pipeline.start is None else pipeline.start.manifest.encoders,
    )


def training_record(pipeline: Pipeline) -> dict[str, Any]:
    """What a model card needs: the recipe, and per stage the steps, the time and the last logged losses."""
    stages = {}
    for losses in sorted(pipeline.folder.rglob("losses.jsonl")):
        last = json.loads(losses.read_text().splitlines()[-1])
        stages[str(losses.parent.relative_to(pipeline.folder))] = last
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"recipe": asdict(pipeline.recipe), "stages": stages, "hardware": hardware}


def _copy_encoders(pipeline: Pipeline, folder: Path) -> None:
    """The start package's encoders of references, which look at pictures alone and fit any UNet."""
    start = pipeline.start
    if start is None or start.manifest.encoders is None or start.folder.resolve() == folder.resolve():
        return
    for part in start.manifest.encoders.model_dump(exclude_none=True).values():
        source = start.folder / part
        if source.is_dir():
            shutil.copytree(source, folder / part, dirs_exist_ok=True)
        else:
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / part)


def write_package(pipeline: Pipeline, folder: Path) -> ModelPackage:
    """Writes the package as float16 safetensors, with `training.json` beside it."""
    adapters = {adapter: pipeline.synchronizer(adapter) for adapter in ADAPTERS}
    vae = pipeline.final_vae
    vae.register_to_config(scaling_factor=pipeline.latents.scale)
    components = Components(
        unet=pipeline.base.unet,
        vae=vae,
        text_encoder=pipeline.base.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler=build_scheduler(),
    )
    _copy_encoders(pipeline, folder)
    package = save_package(folder, manifest(pipeline), components, adapters, dtype=torch.float16)
    (folder / "training.json").write_text(json.dumps(training_record(pipeline), indent=2) + "\n")
    return package
