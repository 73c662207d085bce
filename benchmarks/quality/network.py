"""The attribute reader: a small residual network that names what a picture of one person shows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.quality.attributes import HEADS, Reading
from benchmarks.quality.weights import read_weights, write_weights
from storyloom_training.identity.blocks import Residual, to_input

WIDTHS = (48, 64, 96, 160)
WEIGHTS = Path(__file__).with_name("reader.safetensors")


class AttributeNet(nn.Module):
    """Picture [n, 3, h, w] in [-1, 1], h and w multiples of 32 -> logits per attribute, {name: [n, values]}.

    Each attribute pools the last features with an attention map of its own, so that small things (glasses, a
    mustache) are not averaged away, and pictures of any size fit.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(3, WIDTHS[0], 5, 2, 2, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        self.stages = nn.Sequential(*(Residual(inputs, outputs, 2) for inputs, outputs in pairwise(WIDTHS)))
        self.where = nn.Conv2d(WIDTHS[-1], len(HEADS), 1)
        self.heads = nn.ModuleList(nn.Linear(WIDTHS[-1], len(values)) for values in HEADS.values())

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.stages(self.stem(pictures))
        attention = self.where(features).flatten(2).softmax(2)
        pooled = attention @ features.flatten(2).transpose(1, 2)
        return {name: head(pooled[:, i]) for i, (name, head) in enumerate(zip(HEADS, self.heads, strict=True))}


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
        return cls(read_weights(AttributeNet(), weights, "reader", "benchmarks.quality.reader"))

    def save(self, weights: Path) -> None:
        """Writes the weights in half precision."""
        write_weights(self.network, weights)

    @torch.inference_mode()
    def read(self, pictures: npt.NDArray[np.uint8]) -> list[Reading]:
        """Names what each picture shows; `pictures` uint8 [n, h, w, 3] RGB."""
        readings: list[Reading] = []
        for start in range(0, len(pictures), 64):
            logits = self.network(to_input(torch.from_numpy(np.ascontiguousarray(pictures[start : start + 64]))))
            columns = [[HEADS[name][k] for k in row.argmax(1).tolist()] for name, row in logits.items()]
            readings += [dict(zip(logits, values, strict=True)) for values in zip(*columns, strict=True)]
        return readings
