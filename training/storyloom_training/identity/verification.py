"""How well a recogniser tells people apart: accuracy and true accepts on pairs of held-out faces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from storyloom_training.identity.blocks import to_input
from storyloom_training.identity.data import CropSet
from storyloom_training.identity.labels import ATTRIBUTES

ALIKE = ("age", "gender", "skin")
"""Impostors of the hard pairs agree in these."""
FALSE_ACCEPTS = 1e-3

Embedder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Aligned faces uint8 [n, 112, 112, 3] RGB -> embeddings [n, 512]."""


@dataclass(frozen=True)
class Verification:
    """Fractions in [0, 1]. `accuracy` is at a threshold chosen on one half of the people, measured on the other, on as
    many impostors as true pairs; `true_accepts` at one false accept in a thousand."""

    pairs: int
    impostors: int
    accuracy: float
    true_accepts: float
    threshold: float  # cosine at that rate of false accepts
    same_cosine: float  # means
    other_cosine: float

    def record(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def network_embedder(network: nn.Module) -> Embedder:
    """Runs a network in evaluation mode, in batches."""

    @torch.inference_mode()
    def embed(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        batches = [np.ascontiguousarray(crops[start : start + 64]) for start in range(0, len(crops), 64)]
        return torch.cat([network(to_input(torch.from_numpy(batch))) for batch in batches]).numpy()

    return embed


def verify(embed: Embedder, faces: CropSet) -> dict[str, Verification]:
    """Verification on all impostor pairs ("all") and, if any, on those of equal age, gender and skin ("alike")."""
    embeddings = embed(faces.pixels)
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = embeddings @ embeddings.T
    same = faces.who[:, None] == faces.who[None]
    upper = np.triu(np.ones_like(same), 1)
    columns = [list(ATTRIBUTES).index(name) for name in ALIKE]
    alike = (faces.labels[:, None, columns] == faces.labels[None][..., columns]).all(-1)
    impostors = {"all": ~same & upper, "alike": ~same & alike & upper}
    return {name: _score(cosines, same & upper, other, faces.who) for name, other in impostors.items() if other.any()}


def _score(
    cosines: NDArray[np.float32], same: NDArray[np.bool_], other: NDArray[np.bool_], who: NDArray[np.int32]
) -> Verification:
    ours, theirs = cosines[same], cosines[other]
    threshold = float(np.quantile(theirs, 1 - FALSE_ACCEPTS))
    half = who < np.median(who)
    first, second = np.outer(half, half), np.outer(~half, ~half)
    chosen = _best_threshold(cosines[same & first], cosines[other & first])
    accuracy = _accuracy(cosines[same & second], cosines[other & second], chosen)
    return Verification(
        len(ours),
        len(theirs),
        accuracy,
        float((ours > threshold).mean()),
        threshold,
        float(ours.mean()),
        float(theirs.mean()),
    )


def _accuracy(ours: NDArray[np.float32], theirs: NDArray[np.float32], threshold: float) -> float:
    return float(((ours > threshold).mean() + (theirs <= threshold).mean()) / 2)


def _best_threshold(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(max(np.linspace(-0.2, 1, 241), key=lambda threshold: _accuracy(ours, theirs, float(threshold))))
