"""The attribute reader: a small residual network that names what a picture of one person shows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality.attributes import HEADS, Reading

WIDTHS = (48, 64, 96, 160)
WEIGHTS = Path(__file__).with_name("reader.safetensors")


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al., 2015); halves the size where `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        shortcut = self.shortcut(F.avg_pool2d(x, 2) if self.stride == 2 else x)
        return F.relu(self.second_norm(self.second(inner)) + shortcut)


class AttributeNet(nn.Module):
    """Picture [n, 3, h, w] in [-1, 1], h and w multiples of 32 -> logits per attribute, {name: [n, values]}.

    Each attribute pools the last features with an attention map of its own, so that small things (glasses, a
    mustache) are not averaged away, and pictures of any size fit.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(3, WIDTHS[0], 5, 2, 2, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        self.stages = nn.Sequential(*(_Block(inputs, outputs, 2) for inputs, outputs in pairwise(WIDTHS)))
        self.where = nn.Conv2d(WIDTHS[-1], len(HEADS), 1)
        self.heads = nn.ModuleList(nn.Linear(WIDTHS[-1], len(values)) for values in HEADS.values())

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.stages(self.stem(pictures))
        attention = self.where(features).flatten(2).softmax(2)
        pooled = attention @ features.flatten(2).transpose(1, 2)
        return {name: head(pooled[:, i]) for i, (name, head) in enumerate(zip(HEADS, self.heads, strict=True))}


@torch.no_grad()
def whiten(network: AttributeNet, pictures: Tensor) -> None:
    """Starts the stem with the principal components of the pictures' patches, at equal variance, and their negatives.

    Edges are faint beside flat colour; a whitened stem shows both to the layers above from the first step.
    """
    stem = network.stem[0]
    assert isinstance(stem, nn.Conv2d)
    size, count = stem.kernel_size[0], stem.out_channels // 2
    patches = F.unfold(pictures, size, stride=size).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T.cov())
    strongest = (vectors / (values + 1e-3).sqrt()).T.flip(0)[:count].reshape(count, 3, size, size)
    stem.weight.copy_(torch.cat((strongest, -strongest)))


class Reader:
    """Reads pictures in evaluation mode, in batches of 64."""

    def __init__(self, network: AttributeNet) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> Self:
        """Loads trained weights.

        Raises:
            FileNotFoundError: there are none; train them with `python -m benchmarks.quality.reader`.
        """
        if not weights.exists():
            raise FileNotFoundError(f"{weights} is missing; train the reader: python -m benchmarks.quality.reader")
        network = AttributeNet()
        network.load_state_dict(load_file(weights))
        return cls(network)

    def save(self, weights: Path) -> None:
        """Writes the weights in half precision."""
        state = self.network.state_dict().items()
        small = {name: value.half() if value.is_floating_point() else value for name, value in state}
        save_file({name: value.contiguous() for name, value in small.items()}, weights)

    @torch.inference_mode()
    def read(self, pictures: npt.NDArray[np.uint8]) -> list[Reading]:
        """Names what each picture shows; `pictures` uint8 [n, h, w, 3] RGB."""
        readings: list[Reading] = []
        for start in range(0, len(pictures), 64):
            logits = self.network(to_input(np.ascontiguousarray(pictures[start : start + 64])))
            columns = [[HEADS[name][k] for k in row.argmax(1).tolist()] for name, row in logits.items()]
            readings += [dict(zip(logits, values, strict=True)) for values in zip(*columns, strict=True)]
        return readings


def to_input(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [n, h, w, 3] RGB -> float32 [n, 3, h, w] in [-1, 1], channels last in memory."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
