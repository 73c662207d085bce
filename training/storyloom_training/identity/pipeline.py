"""The encoders of one package in order, each resumable and each skipped when its result is on disk.

A run folder holds: data/<set>/, recogniser/, image/, detector/, segmenter/.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from storyloom_model.identity.encoders.faces import FaceEncoder
from storyloom_training.identity.blocks import named_accuracy, to_input
from storyloom_training.identity.config import IdentityRecipe
from storyloom_training.identity.data import CropSet, character_set, face_set
from storyloom_training.identity.detection import measure_detection
from storyloom_training.identity.detector import FaceDetector, train_detector
from storyloom_training.identity.export import write_detector, write_image_encoder, write_recogniser, write_segmenter
from storyloom_training.identity.image_encoder import PictureReader, train_picture_reader
from storyloom_training.identity.labels import ATTRIBUTES
from storyloom_training.identity.recogniser import train_recogniser
from storyloom_training.identity.scenes import SceneSet, scene_set
from storyloom_training.identity.segmenter import PersonNet, segmentation_iou, train_segmenter
from storyloom_training.identity.verification import network_embedder, verify
from storyloom_training.storydb.groups import Split

PACK = "storyloom-faces"


@dataclass(frozen=True)
class IdentityPipeline:
    """One recipe in one folder. Reading a property renders and trains what it needs."""

    folder: Path
    recipe: IdentityRecipe = field(default_factory=IdentityRecipe)
    workers: int = 2

    def faces(self, split: Split = Split.TRAIN) -> CropSet:
        plan = self.recipe.data
        if split is Split.TRAIN:
            return face_set(self.folder / "data/faces", split, plan.people, plan.pictures, plan.size, 0, self.workers)
        people, pictures = plan.held_out_people, plan.held_out_pictures
        return face_set(self.folder / "data/faces-test", split, people, pictures, plan.size, 0, self.workers)

    def characters(self, split: Split = Split.TRAIN) -> CropSet:
        plan = self.recipe.data
        name, count = ("characters", plan.groups) if split is Split.TRAIN else ("characters-test", plan.held_out_groups)
        return character_set(self.folder / "data" / name, split, count, plan.size, 0, self.workers)

    def scenes(self, split: Split = Split.TRAIN) -> SceneSet:
        plan = self.recipe.data
        name, count = ("scenes", plan.scenes) if split is Split.TRAIN else ("scenes-test", plan.held_out_scenes)
        return scene_set(self.folder / "data" / name, split, count, plan.scene_size, 0, self.workers)

    @cached_property
    def recogniser(self) -> nn.Module:
        return train_recogniser(self.recipe.recogniser, self.faces(), self.folder / "recogniser")

    @cached_property
    def reader(self) -> PictureReader:
        """The image encoder with the heads it was trained with."""
        return train_picture_reader(self.recipe.image, self.faces(), self.characters(), self.folder / "image")

    @cached_property
    def detector(self) -> FaceDetector:
        return train_detector(self.recipe.detector, self.scenes(), self.folder / "detector")

    @cached_property
    def segmenter(self) -> PersonNet:
        return train_segmenter(self.recipe.segmenter, self.scenes(), self.folder / "segmenter")

    def write(self, package: Path) -> None:
        """Writes the encoders into a model package's folder: faces/, image_encoder/ and segmenter/."""
        pack = package / "faces" / "models" / PACK
        write_recogniser(self.recogniser, pack / "rec_storyloom.onnx")
        write_detector(self.detector, pack / "det_storyloom.onnx")
        write_image_encoder(self.reader.encoder, package / "image_encoder")
        write_segmenter(self.segmenter, package / "segmenter" / "segmenter.onnx")

    def measure(self, package: Path) -> dict[str, Any]:
        """What the written encoders do on people, faces and pictures of the test split."""
        encoder = FaceEncoder.load(package / "faces")
        scenes = self.scenes(Split.TEST)
        detection = measure_detection(
            lambda pixels: [(face.box, face.landmarks) for face in encoder.faces(pixels)], scenes.scenes()
        )
        iou = segmentation_iou(self.segmenter, scenes, self.recipe.segmenter.size)
        verification = verify(network_embedder(self.recogniser), self.faces(Split.TEST))
        return {
            "recipe": asdict(self.recipe),
            "detection": detection.record(),
            "verification": {name: score.record() for name, score in verification.items()},
            "image encoder": {
                "faces": self._named(self.faces(Split.TEST)), "characters": self._named(self.characters(Split.TEST)),
            },
            "segmentation": {"iou": round(iou, 4), "pictures": len(scenes)},
        }  # fmt: skip

    @torch.inference_mode()
    def _named(self, crops: CropSet) -> dict[str, dict[str, float]]:
        """Fraction of each attribute named right from the penultimate states, and from the embedding."""
        scores: dict[str, list[list[torch.Tensor]]] = {"states": [], "embedding": []}
        for start in range(0, len(crops), 64):
            pixels = torch.from_numpy(np.ascontiguousarray(crops.pixels[start : start + 64]))
            for name, score in zip(scores, self.reader(to_input(pixels)), strict=True):
                scores[name].append(score)
        labels = torch.from_numpy(crops.labels).long()
        columns = {name: [torch.cat(parts) for parts in zip(*batches, strict=True)] for name, batches in scores.items()}
        return {name: named_accuracy(column, labels, tuple(ATTRIBUTES)) for name, column in columns.items()}
