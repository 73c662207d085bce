"""DINO-I: do a story's pictures fit each other, as DINOv2 sees it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.stories.batches import in_batches
from benchmarks.stories.metric import WeightsError, percent
from benchmarks.stories.similarity import PerPicture, Vectors, cosines_among
from benchmarks.stories.stories import MadeStory, Pixels

DINO_I = percent(
    "dino_i",
    "DINO-I",
    "cosine of the class tokens of two pictures of a story behind DINOv2's last norm, over all pairs (Storynizor; the "
    "embedding is that of DreamBooth's DINO, with DINOv2's weights)",
)


class DinoMetric:
    """A vision transformer of transformers with a class token: DINOv2, or the first DINO."""

    columns = (DINO_I,)

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Loads the folder.

        Raises:
            WeightsError: it holds no such model, or its files are damaged.
        """
        from transformers import AutoImageProcessor, AutoModel

        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{folder} can't be loaded as a vision transformer: {error}; give facebook/dinov2-base"
            ) from error
        if not hasattr(model.config, "patch_size") or not hasattr(model, "layernorm"):
            raise WeightsError(
                f"{folder} is a {type(model).__name__}, not a DINO; give the folder of facebook/dinov2-base"
            )
        self._model = model.to(device).eval()

    def measure(self, story: MadeStory) -> dict[str, PerPicture]:
        return {DINO_I.key: cosines_among(self.embed(story.pictures))}

    @torch.inference_mode()
    def embed(self, pictures: Sequence[Pixels]) -> Vectors:
        """The class tokens, of length 1."""

        def embed(batch: Sequence[Pixels]) -> Tensor:
            images = [Image.fromarray(picture) for picture in batch]
            pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._model.device)
            tokens: Tensor = self._model(pixel_values=pixels).last_hidden_state
            return tokens[:, 0]

        return in_batches(embed, pictures)
