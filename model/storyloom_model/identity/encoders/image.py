"""CLIP image encoders: the penultimate hidden states and the projected embedding of a crop.

Weights come as a transformers folder (CLIPVisionModelWithProjection) or as open_clip publishes them; the latter are
brought into the same module (`open_clip.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from storyloom_model.identity.encoders.crops import Pixels
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.open_clip import CLIP_MEAN, CLIP_STD, Loaded, is_open_clip, load_open_clip
from storyloom_model.identity.encoders.pretrained import load_network


@dataclass(frozen=True, slots=True, eq=False)
class PictureFeatures:
    """`states` [tokens, width], the class token first, and `embedding` [projection]; float16."""

    states: NDArray[np.float16]
    embedding: NDArray[np.float16]


class ImageEncoder:
    """A CLIP vision tower in evaluation mode. Crops are to be made at `size` x `size` pixels."""

    def __init__(
        self,
        network: CLIPVisionModelWithProjection,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        device: str = "cpu",
    ) -> None:
        # Half precision only where it is fast; on CPU it is slower than float32.
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self._network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.size: int = network.config.image_size
        self.width: int = network.config.hidden_size
        self.projection: int = network.config.projection_dim
        self.tokens: int = (self.size // network.config.patch_size) ** 2 + 1

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Self:
        """Loads a transformers folder, an open_clip folder (open_clip_config.json) or an open_clip file.

        Raises:
            EncodersError: there is no such encoder, or its files are damaged.
        """
        return cls(*load_image_network(path), device=device)

    @torch.inference_mode()
    def encode(self, crops: Sequence[Pixels]) -> list[PictureFeatures]:
        """Encodes crops, uint8 [size, size, 3] RGB each, in one call."""
        if not crops:
            return []
        pixels = torch.from_numpy(np.stack(crops)).to(self._mean.device)
        output = self._network(pixel_values=self._normalised(pixels), output_hidden_states=True)
        states, embeddings = output.hidden_states[-2].half().cpu().numpy(), output.image_embeds.half().cpu().numpy()
        return [PictureFeatures(*pair) for pair in zip(states, embeddings, strict=True)]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """As CLIPImageProcessor: crops have the encoder's size already, so there is nothing to resize."""
        scaled = pixels.permute(0, 3, 1, 2).float() / 255
        return ((scaled - self._mean) / self._std).to(self._network.dtype)


def load_image_network(path: Path) -> Loaded:
    """The module of an image encoder, float32 on the CPU, and mean and standard deviation of its pixels.

    Raises:
        EncodersError: there is no such encoder, or its files are damaged.
    """
    if is_open_clip(path):
        return load_open_clip(path)
    if not (path / "config.json").is_file():
        raise EncodersError(f"{path} is no image encoder: it has neither config.json nor open_clip_config.json")
    network = load_network(CLIPVisionModelWithProjection, path, dtype=torch.float32)
    return network, *_pixel_statistics(path / "preprocessor_config.json")


def _pixel_statistics(file: Path) -> tuple[Sequence[float], Sequence[float]]:
    if not file.is_file():
        return CLIP_MEAN, CLIP_STD
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
