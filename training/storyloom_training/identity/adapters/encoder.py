"""The encoders of a model package, on crops that are cut already."""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyloom_model.identity.encoders.faces import find_pack, providers_for
from storyloom_model.identity.encoders.image import ImageEncoder
from storyloom_model.identity.encoders.references import encoders_fingerprint
from storyloom_training.identity.adapters.crops import Crops


class PackageEncoder:
    """Recogniser of the face pack in the folder `faces`, and the image encoder at `image`.

    Raises:
        EncodersError: one is missing or damaged.
    """

    def __init__(self, faces: Path, image: Path) -> None:
        model_zoo: Any = importlib.import_module("insightface.model_zoo")
        files = sorted(find_pack(faces).glob("*.onnx"))
        models = (model_zoo.get_model(str(file), providers=providers_for("cpu")) for file in files)
        self._recogniser = next(model for model in models if getattr(model, "taskname", None) == "recognition")
        self._image = ImageEncoder.load(image)
        self.recogniser = Path(self._recogniser.model_file)
        self.image = image
        self.size = self._image.size

    @cached_property
    def fingerprint(self) -> str:
        """Of recogniser and image encoder; features do not depend on what finds the faces."""
        return encoders_fingerprint([self.recogniser, self.image])

    def faces(self, crops: Crops) -> NDArray[np.float32]:
        """Aligned faces [n, 112, 112, 3] RGB -> embeddings of length 1, [n, 512]."""
        found: NDArray[np.float32] = self._recogniser.get_feat([crop[..., ::-1] for crop in crops])
        unit: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit

    def states(self, crops: Crops) -> NDArray[np.float16]:
        """Pictures [n, h, w, 3] RGB -> penultimate hidden states [n, tokens, width]."""
        return np.stack([features.states for features in self._image.encode(list(crops))])
