"""ControlNets for the tiny package, with random weights, and pictures for them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image

from storyloom_model.identity.features import IdentityFeatures
from storyloom_model.jobs import Control, StoryJob
from storyloom_model.manifest import Manifest
from storyloom_model.package import ModelPackage, write_manifest
from tests.model.tiny import SIZE, tiny_unet
from tests.model.tiny_identity import build_identity_package, tiny_features

LANDMARKS = np.array([(20, 20), (40, 20), (30, 30), (24, 40), (36, 40)], np.float32)


def tiny_controlnet(unet: Any, seed: int = 0) -> Any:
    """Random in its last layers, too, which training begins at zero."""
    torch.manual_seed(seed)
    net: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))  # type: ignore[no-untyped-call]
    for name, value in net.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding")):
            torch.nn.init.normal_(value, std=0.3)
    return net


def build_control_package(folder: Path) -> Path:
    """The tiny package with identities, and ControlNets: pose, and face, which reads the tokens of ``faces``."""
    return add_controlnets(build_identity_package(folder))


def add_controlnets(folder: Path) -> Path:
    """Adds both; pose counts 0.8."""
    manifest = ModelPackage.load(folder).manifest.model_dump(mode="json", exclude_none=True)
    manifest["controlnets"] = {
        "pose": {"folder": "controlnets/pose", "scale": 0.8},
        "face": {"folder": "controlnets/face", "kind": "identitynet", "adapter": "faces"},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for seed, name in enumerate(manifest["controlnets"]):
            tiny_controlnet(tiny_unet(), seed).save_pretrained(folder / "controlnets" / name)
    write_manifest(folder, Manifest.model_validate(manifest))
    return folder


def set_config(folder: Path, **values: Any) -> None:
    """Changes the configuration of a component in a folder."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def picture(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    """Four by four fields of colours that the seed decides; (width, height)."""
    fields = np.random.default_rng(seed).choice([0, 255], (4, 4, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(fields).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def posed(job: StoryJob, *seeds: int | None, net: str = "pose", scale: float = 1.0) -> StoryJob:
    """The job with pictures for its first frames; None leaves a frame without."""
    frames = [
        frame if seed is None else replace(frame, control=Control(net, picture(seed), scale))
        for frame, seed in zip(job.frames, [*seeds, *[None] * (len(job.frames) - len(seeds))], strict=True)
    ]
    return replace(job, frames=tuple(frames))


def with_landmarks(seed: int, shift: float = 0.0, references: int = 1) -> bytes:
    """Features as ``tiny_features``, whose faces are ``LANDMARKS``, moved, in pictures of 64 by 64."""
    features = IdentityFeatures.from_bytes(tiny_features(seed, references))
    found = [
        replace(one, landmarks=LANDMARKS + np.float32(shift), size=np.full(2, 64, np.float32))
        for one in features.references
    ]
    return IdentityFeatures(features.encoders, tuple(found)).to_bytes()
