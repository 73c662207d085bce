"""Writes trained encoders as published ones are: ONNX files of an insightface pack, a transformers folder."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import onnx
import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from storyloom_model.identity.encoders.crops import RECOGNISER_SIZE
from storyloom_training.identity.detector import STRIDES, FaceDetector, PublishedForm
from storyloom_training.identity.image_encoder import MEAN, STD

OPSET = 18


def write_recogniser(network: nn.Module, file: Path) -> None:
    """One input [1, 3, 112, 112], any number in a batch; one output [n, 512]."""
    faces = torch.zeros(2, 3, RECOGNISER_SIZE, RECOGNISER_SIZE)
    batch = torch.export.Dim("batch", min=1, max=1024)
    _write(network, (faces,), file, ["input"], ["embedding"], ({0: batch},))


def write_detector(network: FaceDetector, file: Path) -> None:
    """One input [1, 3, h, w], sides multiples of 32; nine outputs in SCRFD's order."""
    cells = {axis: torch.export.Dim(axis, min=2, max=64) for axis in ("h", "w")}
    shapes = ({2: STRIDES[-1] * cells["h"], 3: STRIDES[-1] * cells["w"]},)
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES]
    _write(PublishedForm(network), (torch.zeros(1, 3, 256, 320),), file, ["input"], names, shapes)


def write_segmenter(network: nn.Module, file: Path) -> None:
    """One input [n, 3, h, w] in [-1, 1], sides multiples of 16; probabilities [n, 1, h, w]."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    cells = {axis: torch.export.Dim(axis, min=2, max=128) for axis in ("h", "w")}
    shapes = ({0: batch, 2: 16 * cells["h"], 3: 16 * cells["w"]},)
    _write(network, (torch.zeros(2, 3, 128, 160),), file, ["input"], ["probability"], shapes)


def write_image_encoder(encoder: CLIPVisionModelWithProjection, folder: Path) -> None:
    """A transformers folder in float16, with the preprocessor_config.json of CLIPImageProcessor."""
    copy.deepcopy(encoder).half().save_pretrained(folder)
    size = encoder.config.image_size
    described = {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": {"height": size, "width": size},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [MEAN] * 3, "image_std": [STD] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _write(
    network: nn.Module, example: tuple[torch.Tensor, ...], file: Path, inputs: list[str], outputs: list[str],
    shapes: tuple[object, ...],
) -> None:  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format).eval().requires_grad_(False)  # type: ignore[call-overload]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        plain, example, dynamo=True, dynamic_shapes=shapes, input_names=inputs, output_names=outputs,
        opset_version=OPSET, optimize=True, verbose=False,
    )  # fmt: skip
    if program is None:
        raise RuntimeError(f"torch exported nothing for {file}")
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, file)
