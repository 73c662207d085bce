"""A check of pictures by an image classifier of the transformers library, from local files."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyloom_server.safety import ALLOWED, Verdict


class TransformersImageCheck:
    """Refuses pictures in which the classifier sees one of some labels.

    Args:
        folder: of the model and its image processor, as ``save_pretrained`` writes them.
        labels: of the model, that are refused.
        threshold: their probability from which they are.

    Raises:
        OSError: there is no such model.
        ValueError: the model has no such label.
    """

    name = "picture-classifier"

    def __init__(self, folder: Path, labels: Collection[str], threshold: float) -> None:
        # Not at the top: a server without this check must not pay for it.
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self._processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)
        self._model: Any = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
        known = {str(label).lower(): index for index, label in self._model.config.id2label.items()}
        unknown = sorted(label for label in labels if label.lower() not in known)
        if unknown or not labels:
            raise ValueError(f"it has no label {', '.join(unknown)}; use some of {', '.join(known)}")
        self._refused = {label.lower(): known[label.lower()] for label in labels}
        self._threshold = threshold
        # Processors keep state between calls.
        self._lock = threading.Lock()

    def prompt(self, text: str) -> Verdict:
        """It only looks at pictures."""
        return ALLOWED

    def picture(self, rgb: NDArray[np.uint8]) -> Verdict:
        """Judges uint8 [height, width, 3] by the most probable refused label."""
        import torch

        with self._lock, torch.inference_mode():
            inputs = self._processor(images=rgb, return_tensors="pt", input_data_format="channels_last")
            probabilities = self._model(**inputs).logits[0].float().softmax(-1)
        if not bool(torch.isfinite(probabilities).all()):
            raise ArithmeticError("the classifier's answer is not finite")
        label, score = max(
            ((label, float(probabilities[index])) for label, index in self._refused.items()), key=lambda each: each[1]
        )
        return Verdict(refused=score >= self._threshold, label=label, score=score)
