"""StoryMaker's ID loss: faces of what a step would end in, held against the true ones by the package's recogniser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from insightface.utils.face_align import estimate_norm
from torch import Tensor
from torch.nn import functional as F

from storyloom_model.identity.encoders.crops import RECOGNISER_SIZE
from storyloom_training.device import mixed_precision
from storyloom_training.diffusion import build_scheduler
from storyloom_training.identity.adapters.batches import IdentityBatch, References
from storyloom_training.identity.adapters.features import PeopleFeatures
from storyloom_training.identity.adapters.references import NOBODY
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.picture import render


@dataclass(frozen=True)
class FaceLoss:
    """1 - cosine between the faces of the decoded estimate and those of the frames' own pictures.

    Only frames at timesteps below `below` count, as before that an estimate has no face, and of these at most `rows`,
    as decoding is dear. People without a reference, and frames whose references are zeroed, do not count.
    `recognise` takes faces [n, 3, 112, 112] RGB in [-1, 1]; `scale` is the autoencoder's.
    """

    vae: Any
    scale: float
    recognise: Callable[[Tensor], Tensor]
    data: StoryDB
    features: PeopleFeatures
    rows: int
    below: int

    def __call__(
        self, noisy: Tensor, made: Tensor, timesteps: Tensor, batch: IdentityBatch, references: References
    ) -> Tensor | None:
        """The mean over the faces that count, or None where there are none.

        Args:
            noisy, made: latents and the v that the UNet makes of them, [rows, c, h, w].
            timesteps: int64 [rows].
            batch: rows; its references are not looked at.
            references: of the rows.
        """
        entries = self._own_entries(batch)
        counted = (entries != NOBODY) & references.present & ~references.zeroed[:, None]
        rows = ((timesteps < self.below) & counted.any(1)).nonzero().flatten()[: self.rows].tolist()
        if not rows:
            return None
        with mixed_precision(made.device):
            pictures = self.vae.decode(clean_estimate(noisy[rows], made[rows], timesteps[rows]) / self.scale).sample
        crops, wanted = [], []
        for picture, row in zip(pictures.float(), rows, strict=True):
            landmarks = self._landmarks(batch.pictures[row])
            for place in counted[row].nonzero().flatten().tolist():
                crops.append(aligned(picture, landmarks[place]))
                wanted.append(entries[row, place])
        true = self.features.take("face", torch.stack(wanted))
        return 1 - F.cosine_similarity(self.recognise(torch.stack(crops)), true).mean()

    def _own_entries(self, batch: IdentityBatch) -> Tensor:
        """Entries of the people in the frames themselves, int64 [rows, people]."""
        frames = self.data.frames
        return torch.stack([self.features.table[picture // frames, picture % frames] for picture in batch.pictures])

    def _landmarks(self, picture: int) -> list[np.ndarray]:
        """[5, 2] of each person of a picture, in pixels."""
        group, frame = divmod(picture, self.data.frames)
        return [np.array(one.landmarks) for one in render(self.data.group(group), frame, self.data.size).people]


def clean_estimate(noisy: Tensor, made: Tensor, timesteps: Tensor) -> Tensor:
    """What is left of latents without the noise that a v says is in them: sqrt(a) x - sqrt(1 - a) v."""
    share: Tensor = build_scheduler().alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return share.sqrt() * noisy - (1 - share).sqrt() * made


def aligned(picture: Tensor, landmarks: np.ndarray) -> Tensor:
    """The face of a picture [3, h, w] where recognisers expect it, [3, 112, 112]; differentiable.

    The same places as of `encoders.crops.aligned_face`; what lies outside of the picture is grey.
    """
    size = RECOGNISER_SIZE
    there = np.vstack([estimate_norm(landmarks.astype(np.float32), size), [0, 0, 1]])
    back = torch.from_numpy(np.linalg.inv(there)[:2]).to(picture)
    steps = torch.arange(size, dtype=picture.dtype)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack((x, y, torch.ones_like(x)), -1) @ back.T
    sides = torch.tensor([picture.shape[2], picture.shape[1]], dtype=picture.dtype)
    grid = (2 * places + 1) / sides - 1
    return F.grid_sample(picture[None], grid[None], mode="bilinear", align_corners=False)[0]
