"""The face detector: SCRFD's outputs (Guo et al., 2021) from a tiny network of separable convolutions.

Strides 8, 16 and 32, two anchors a cell; every anchor says whether a face of its range of sizes has its centre there,
the distances to the sides of its box and the offsets of five landmarks, both in strides, from the cell's first pixel.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyloom_training.identity.blocks import Separable, augment, to_input
from storyloom_training.identity.config import DetectorRecipe
from storyloom_training.identity.detector_targets import Targets, assign, draw_batch
from storyloom_training.identity.scenes import SceneSet
from storyloom_training.loop import Losses, Stage, run

STRIDES = (8, 16, 32)
ANCHORS = 2
INPUT_RATIO = 127.5 / 128
"""SCRFD divides by 128 where this project's other networks divide by 127.5."""


class FaceDetector(nn.Module):
    """Picture [n, 3, h, w] in [-1, 1], sides multiples of 32 -> per anchor 15 numbers [n, anchors, 15], all strides.

    Of the 15 the first is the score before the sigmoid, four are distances, ten are offsets.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 96), inner: int = 48) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(), Separable(first, second, 2)
        )
        self.levels = nn.ModuleList((
            nn.Sequential(Separable(second, third, 2), Separable(third, third), Separable(third, third)),
            nn.Sequential(Separable(third, fourth, 2), Separable(fourth, fourth), Separable(fourth, fourth)),
            nn.Sequential(Separable(fourth, fourth, 2), Separable(fourth, fourth), Separable(fourth, fourth)),
        ))  # fmt: skip
        self.lateral = nn.ModuleList(nn.Conv2d(width, inner, 1) for width in (third, fourth, fourth))
        self.mixers = nn.ModuleList(nn.Sequential(Separable(inner, inner), Separable(inner, inner)) for _ in STRIDES)
        self.heads = nn.ModuleList(nn.Conv2d(inner, ANCHORS * 15, 1) for _ in STRIDES)
        for name, value in self.heads.named_parameters():
            nn.init.normal_(value, std=0.01)
            if name.endswith("bias"):
                value.data.view(ANCHORS, 15)[:, 0] = -4.0  # faces are rare

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(pictures)
        for level, lateral in zip(self.levels, self.lateral, strict=True):
            x = level(x)
            features.append(lateral(x))
        merged = features[-1]
        outputs = []
        for place in reversed(range(len(STRIDES))):
            if place < len(STRIDES) - 1:
                merged = features[place] + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            raw = self.heads[place](self.mixers[place](merged))
            outputs.append(raw.permute(0, 2, 3, 1).reshape(raw.shape[0], -1, 15))
        outputs.reverse()
        return outputs


class PublishedForm(nn.Module):
    """SCRFD's nine outputs: scores [n, 1] of each stride, then distances [n, 4], then offsets [n, 10]."""

    def __init__(self, network: FaceDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        levels = [level[0] for level in self.network(picture / INPUT_RATIO)]
        scores = [level[:, :1].sigmoid() for level in levels]
        boxes = [F.softplus(level[:, 1:5]) for level in levels]
        landmarks = [level[:, 5:] for level in levels]
        return (*scores, *boxes, *landmarks)


def overlap(boxes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of distances [n, 4] from one point: left, top, right, bottom."""
    inner = torch.minimum(boxes, wanted)
    outer = torch.maximum(boxes, wanted)
    common = (inner[:, 0] + inner[:, 2]).clamp(min=0) * (inner[:, 1] + inner[:, 3]).clamp(min=0)
    areas = [(d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3]) for d in (boxes, wanted, outer)]
    union = areas[0] + areas[1] - common
    iou = common / union.clamp(min=1e-6)
    return iou, iou - (areas[2] - union) / areas[2].clamp(min=1e-6)


def detection_loss(outputs: Tensor, targets: Targets) -> Losses:
    """Quality focal loss on scores, generalised IoU on boxes, smooth L1 on landmarks in units of the face's size."""
    outputs = outputs.float()
    found = targets.kind == 1
    distances, offsets = F.softplus(outputs[found][:, 1:5]), outputs[found][:, 5:]
    iou, general = overlap(distances, targets.distances[found])
    quality = torch.zeros_like(outputs[..., 0])
    quality[found] = iou.detach().clamp(min=0.1)
    counted = targets.kind >= 0
    scores = outputs[..., 0][counted]
    wanted = quality[counted]
    weight = (wanted - scores.sigmoid()).abs().detach() ** 2
    count = found.sum().clamp(min=1)
    score = (weight * F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")).sum() / count
    size = targets.distances[found].sum(1, keepdim=True) / 2
    landmarks = F.smooth_l1_loss(10 * offsets / size, 10 * targets.offsets[found] / size, reduction="sum") / count / 10
    box = (1 - general).sum() / count
    return {
        "loss": score + 2 * box + landmarks,
        "score": score.detach(),
        "box": box.detach(),
        "iou": iou.sum().detach() / count,
    }


def train_detector(recipe: DetectorRecipe, data: SceneSet, folder: Path) -> FaceDetector:
    """Trains from nothing, or loads the detector where `folder` holds the finished training."""
    torch.manual_seed(recipe.seed)
    draw = torch.Generator().manual_seed(recipe.seed)
    model = FaceDetector().train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    stage = Stage("detector", folder, model, optimizer, recipe.steps, 50, recipe.learning_rate, draw)

    def compute(stage: Stage) -> Losses:
        pixels, faces, clear = draw_batch(data, recipe.batch, draw)
        targets = assign(faces, clear, pixels.shape[1])
        pictures = augment(to_input(pixels), draw, shifts=False).contiguous(memory_format=torch.channels_last)
        return detection_loss(torch.cat(model(pictures), 1), targets)

    run(stage, compute)
    model.eval()
    return model
