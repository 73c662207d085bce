"""The person segmenter: a tiny U-Net (Ronneberger et al., 2015) from a picture to where people are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyloom_training.identity.blocks import Separable, augment, to_input
from storyloom_training.identity.config import SegmenterRecipe
from storyloom_training.identity.scenes import SceneSet
from storyloom_training.loop import Losses, Stage, run


class PersonNet(nn.Module):
    """Picture [n, 3, h, w] in [-1, 1], sides multiples of 16 -> probability of a person [n, 1, h, w]."""

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(Separable(inputs, outputs, 2), Separable(outputs, outputs)) for inputs, outputs in steps
        )
        self.up = nn.ModuleList(Separable(inputs + outputs, inputs) for inputs, outputs in steps)
        self.last = nn.Conv2d(widths[0], 1, 1)

    def logits(self, pictures: Tensor) -> Tensor:
        """At half the size, [n, 1, h / 2, w / 2]."""
        features = [self.stem(pictures)]
        for down in self.down:
            features.append(down(features[-1]))
        x = features.pop()
        for up in reversed(self.up):
            x = up(torch.cat((features.pop(), F.interpolate(x, scale_factor=2.0, mode="nearest")), 1))
        result: Tensor = self.last(x)
        return result

    def forward(self, pictures: Tensor) -> Tensor:
        return F.interpolate(self.logits(pictures), scale_factor=2.0, mode="bilinear").sigmoid()


def train_segmenter(recipe: SegmenterRecipe, data: SceneSet, folder: Path) -> PersonNet:
    """Trains from nothing, or loads the segmenter where `folder` holds the finished training."""
    torch.manual_seed(recipe.seed)
    draw = torch.Generator().manual_seed(recipe.seed)
    model = PersonNet().train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    stage = Stage("segmenter", folder, model, optimizer, recipe.steps, 20, recipe.learning_rate, draw)

    def compute(stage: Stage) -> Losses:
        chosen = torch.randint(len(data), (recipe.batch,), generator=draw).numpy()
        pictures = reduced(to_input(torch.from_numpy(data.pixels[chosen])), recipe.size)
        pictures = augment(pictures, draw, shifts=False)
        people = reduced(torch.from_numpy(data.masks[chosen])[:, None].float(), recipe.size)
        if torch.rand((), generator=draw) < 0.5:
            pictures, people = pictures.flip(3), people.flip(3)
        logits = model.logits(pictures.contiguous(memory_format=torch.channels_last))
        wanted = F.avg_pool2d(people, 2)
        entropy = F.binary_cross_entropy_with_logits(logits, wanted)
        found = logits.sigmoid()
        dice = 1 - (2 * (found * wanted).sum() + 1) / ((found**2).sum() + (wanted**2).sum() + 1)
        return {"loss": entropy + dice, "dice": dice.detach()}

    run(stage, compute)
    model.eval()
    return model


def reduced(maps: Tensor, size: int) -> Tensor:
    return F.interpolate(maps, (size, size), mode="bilinear", antialias=True)


@torch.inference_mode()
def segmentation_iou(network: PersonNet, data: SceneSet, size: int) -> float:
    """Mean over pictures, reduced to `size`, of intersection over union."""
    values = []
    for start in range(0, len(data), 16):
        found = network(reduced(to_input(torch.from_numpy(data.pixels[start : start + 16])), size))[:, 0] > 0.5
        people = reduced(torch.from_numpy(data.masks[start : start + 16])[:, None].float(), size)[:, 0] > 0.5
        both, either = (found & people).flatten(1).sum(1), (found | people).flatten(1).sum(1)
        values.append(both / either.clamp(min=1))
    return float(torch.cat(values).mean())
