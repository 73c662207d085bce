"""The encoders of a model package, on crops that are cut already."""

from __future__ import annotations

import hashlib
import importlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from storyloom_training.identity.adapters.crops import Crops


class PackageEncoder:
    """Recogniser of the face pack in `faces`, and the image encoder in `images` (transformers' layout)."""

    def __init__(self, faces: Path, images: Path) -> None:
        (self._pack,) = (faces / "models").iterdir()
        self._images = images

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights."""
        digest = hashlib.sha256()
        for file in (Path(self._recogniser.model_file), *sorted(self._images.glob("*.safetensors"))):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def faces(self, crops: Crops) -> NDArray[np.float32]:
        """Aligned faces [n, 112, 112, 3] RGB -> embeddings of length 1, [n, 512]."""
        found: NDArray[np.float32] = self._recogniser.get_feat([crop[..., ::-1] for crop in crops])
        unit: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit

    @torch.inference_mode()
    def states(self, crops: Crops) -> NDArray[np.float32]:
        """Pictures [n, h, w, 3] RGB -> penultimate hidden states [n, tokens, width]."""
        processor, model = self._vision
        pixels = processor(list(crops), return_tensors="pt").pixel_values
        hidden: NDArray[np.float32] = model(pixels, output_hidden_states=True).hidden_states[-2].numpy()
        return hidden

    @cached_property
    def _recogniser(self) -> Any:
        model_zoo: Any = importlib.import_module("insightface.model_zoo")

        files = sorted(self._pack.glob("*.onnx"))
        models = (model_zoo.get_model(str(file), providers=["CPUExecutionProvider"]) for file in files)
        return next(model for model in models if getattr(model, "taskname", None) == "recognition")

    @cached_property
    def _vision(self) -> tuple[Any, Any]:
        processor: Any = CLIPImageProcessor
        model = CLIPVisionModelWithProjection.from_pretrained(self._images, local_files_only=True).eval()
        return processor.from_pretrained(self._images, local_files_only=True), model
