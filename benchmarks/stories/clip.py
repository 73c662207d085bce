"""CLIP-T, CLIP-T-C and CLIP-I: does the text fit the pictures, and do the pictures fit each other, as CLIP sees it?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.stories.batches import in_batches
from benchmarks.stories.metric import WeightsError, percent
from benchmarks.stories.similarity import PerPicture, Vectors, cosines_among
from benchmarks.stories.stories import MadeStory, Pixels

CLIP_T = percent(
    "clip_t",
    "CLIP-T",
    "cosine of CLIP's embeddings of a picture and of its whole prompt, as the model was given it (Hessel et al. 2021 "
    "without their factor and prefix; Storynizor, IdentityStory)",
)
CLIP_T_C = percent(
    "clip_t_c",
    "CLIP-T-C",
    "the same with the description of each character in the picture alone in place of the prompt, averaged over them "
    "(IdentityStory names the figure and does not define it; taken is the whole picture, not a region)",
)
CLIP_I = percent(
    "clip_i",
    "CLIP-I",
    "cosine of CLIP's embeddings of two pictures of a story, over all pairs (Storynizor: similarity across frames)",
)


class Towers(Protocol):
    """A CLIP model: pictures and texts become rows of length 1 in one space."""

    def pictures(self, pictures: Sequence[Pixels]) -> Vectors: ...

    def texts(self, texts: Sequence[str]) -> Vectors: ...


class ClipMetrics:
    """Scores with any CLIP. Texts that are longer than it reads are cut off."""

    columns = (CLIP_T, CLIP_T_C, CLIP_I)

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    def measure(self, story: MadeStory) -> dict[str, PerPicture]:
        pictures = self._towers.pictures(story.pictures)
        prompts = self._towers.texts(story.prompts)
        return {
            CLIP_T.key: [float(value) for value in (pictures * prompts).sum(1)],
            CLIP_T_C.key: self._characters(story, pictures),
            CLIP_I.key: cosines_among(pictures),
        }

    def _characters(self, story: MadeStory, pictures: Vectors) -> PerPicture:
        said = [story.asked.descriptions(frame) for frame in range(len(pictures))]
        texts = sorted({text for frame in said for text in frame if text})
        known = dict(zip(texts, self._towers.texts(texts), strict=True)) if texts else {}
        shown = ([known[text] for text in frame if text] for frame in said)
        return [
            float(np.mean(np.stack(own) @ picture)) if own else None
            for own, picture in zip(shown, pictures, strict=True)
        ]


def load_clip(folder: Path, device: str = "cpu") -> Towers:
    """Loads a CLIP of transformers (config.json) or, with the extra `eval`, of open_clip (open_clip_config.json).

    Raises:
        WeightsError: the folder holds neither, its files are damaged, or open_clip is not installed.
    """
    if (folder / "config.json").is_file():
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "clip":
            raise WeightsError(f"{folder} is a model of type {kind!r}, not clip; give openai/clip-vit-large-patch14")
        return TransformersClip(folder, device)
    if (folder / "open_clip_config.json").is_file():
        return OpenClip(folder, device)
    raise WeightsError(f"{folder} has neither config.json nor open_clip_config.json; give the folder of a CLIP model")


class TransformersClip:
    """A CLIPModel with its tokenizer and its image processor, as published in one folder."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        try:
            model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{folder} can't be loaded as CLIPModel: {error}; copy the complete folder") from error
        self._model = model.to(device).eval()
        self._room: int = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Pixels]) -> Vectors:
        def embed(batch: Sequence[Pixels]) -> Tensor:
            images = [Image.fromarray(picture) for picture in batch]
            pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._model.device)
            embedded: Tensor = self._model.visual_projection(
                self._model.vision_model(pixel_values=pixels).pooler_output
            )
            return embedded

        return in_batches(embed, pictures)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        def embed(batch: Sequence[str]) -> Tensor:
            tokens = self._tokenizer(
                list(batch), padding=True, truncation=True, max_length=self._room, return_tensors="pt"
            ).to(self._model.device)
            pooled = self._model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            embedded: Tensor = self._model.text_projection(pooled)
            return embedded

        return in_batches(embed, texts)


class OpenClip:
    """A folder as open_clip publishes it, through its own library."""

    def __init__(self, folder: Path, device: str) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise WeightsError(
                f"{folder} is a model of open_clip, which can't be imported ({error}); pip install 'storyloom[eval]'"
            ) from error
        name = f"local-dir:{folder}"
        try:
            model, self._processor = open_clip.create_model_from_pretrained(name)
            self._tokenizer = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{folder} can't be loaded by open_clip: {error}; copy the complete folder") from error
        self._model: Any = model.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Pixels]) -> Vectors:
        def embed(batch: Sequence[Pixels]) -> Tensor:
            pixels = torch.stack([self._processor(Image.fromarray(picture)) for picture in batch])
            embedded: Tensor = self._model.encode_image(pixels.to(self._device))
            return embedded

        return in_batches(embed, pictures)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        return in_batches(lambda batch: self._model.encode_text(self._tokenizer(list(batch)).to(self._device)), texts)
