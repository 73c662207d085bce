"""The judge: a face recogniser that no identity adapter has seen, of another build, seed and people than the package's.

    judge = Judge.load()
    embeddings = judge.embed(crops)          # aligned faces uint8 [n, 112, 112, 3] RGB -> [n, 512], of length 1
    similarity = embeddings[0] @ embeddings[1]

Faces are found and aligned by the package's detector (`FaceEncoder.faces`, `Face.crop(picture, 112)`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality.weights import read_weights, write_weights
from storyloom_training.identity.blocks import Residual, to_input

EMBEDDING = 512
WEIGHTS = Path(__file__).with_name("judge.safetensors")


class JudgeNet(nn.Module):
    """Patches of 4x4 pixels, three residual blocks, and a mean over places that the network weighs.

    An aligned face [n, 3, 112, 112] in [-1, 1] -> [n, 512].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 4, 4, bias=False)
        self.stem_norm = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(Residual(64, 96, 2), Residual(96, 128), Residual(128, 160, 2))
        self.where = nn.Conv2d(160, 8, 1)
        self.embed = nn.Linear(8 * 160, EMBEDDING, bias=False)
        self.embed_norm = nn.BatchNorm1d(EMBEDDING, affine=False)

    def forward(self, faces: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.stem_norm(self.stem(faces))))
        attention = self.where(features).flatten(2).softmax(2)
        pooled = attention @ features.flatten(2).transpose(1, 2)
        result: Tensor = self.embed_norm(self.embed(pooled.flatten(1)))
        return result


class Judge:
    """Embeds aligned faces in evaluation mode, in batches of 64."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> Self:
        """Loads trained weights.

        Raises:
            FileNotFoundError: there are none; train them with `python -m benchmarks.quality.judge_training`.
        """
        return cls(read_weights(JudgeNet(), weights, "judge", "benchmarks.quality.judge_training"))

    def save(self, weights: Path) -> None:
        """Writes the weights in half precision."""
        write_weights(self.network, weights)

    @torch.inference_mode()
    def embed(self, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Aligned faces uint8 [n, 112, 112, 3] RGB -> float32 [n, 512], of length 1."""
        batches = [np.ascontiguousarray(faces[start : start + 64]) for start in range(0, len(faces), 64)]
        if not batches:
            return np.zeros((0, EMBEDDING), np.float32)
        embeddings = torch.cat([self.network(to_input(torch.from_numpy(batch))) for batch in batches])
        return F.normalize(embeddings).numpy()
