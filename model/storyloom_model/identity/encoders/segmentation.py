"""Where the person of a picture is: one protocol, and what fulfils it.

A mask that the user gives needs no segmenter. Otherwise: the built-in network of small packages, any semantic or
universal segmentation model of transformers, or SAM on the boxes that Grounding DINO finds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from storyloom_model.identity.encoders.crops import Mask, Pixels
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.faces import providers_for
from storyloom_model.identity.encoders.grounding import BoxSegmenter, WordDetector
from storyloom_model.identity.encoders.pretrained import load_network, load_processor
from storyloom_model.identity.parts import PARTS, part_named

BUILT_IN_FILE = "segmenter.onnx"
PERSON = "person"


class Segmenter(Protocol):
    """Finds people."""

    def people(self, picture: Pixels) -> Mask:
        """Where people are, bool [h, w], of a picture uint8 [h, w, 3] RGB; all False where there is nobody."""
        ...


class BuiltInSegmenter:
    """A small network in ONNX: pictures [n, 3, h, w] in [-1, 1], sides of 16 k, to probabilities [n, 1, h, w]."""

    SIDE = 128

    def __init__(self, file: Path, device: str = "cpu") -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(file), providers=providers_for(device))
        self._input = self._session.get_inputs()[0].name

    def people(self, picture: Pixels) -> Mask:
        small = Image.fromarray(picture).resize((self.SIDE, self.SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        (probability,) = self._session.run(None, {self._input: pixels})
        return _resized(probability[0, 0], picture) > 0.5


class _SemanticModel:
    """A semantic segmentation model of transformers (SegFormer, UperNet, ...)."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        self._network = load_network(AutoModelForSemanticSegmentation, folder).to(device)
        self._processor = load_processor(AutoImageProcessor, folder)

    @torch.inference_mode()
    def _classes(self, picture: Pixels) -> NDArray[np.int64]:
        """The class of each pixel, [h, w]."""
        inputs = self._processor(images=Image.fromarray(picture), return_tensors="pt").to(self._network.device)
        logits = self._network(**inputs).logits
        full = torch.nn.functional.interpolate(logits.float(), picture.shape[:2], mode="bilinear")
        classes: NDArray[np.int64] = full[0].argmax(0).cpu().numpy()
        return classes


class SemanticSegmenter(_SemanticModel):
    """One with a class called person."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        super().__init__(folder, device)
        self._class = _person_class(self._network.config, folder)

    def people(self, picture: Pixels) -> Mask:
        return np.asarray(self._classes(picture) == self._class)


class Parser(_SemanticModel):
    """One whose classes are parts of people, as for human parsing (ATR, LIP, ...): finds the parts of a character.

    Raises:
        EncodersError: it is not usable, or none of its classes is a part.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        super().__init__(folder, device)
        named = {int(index): part_named(name) for index, name in self._network.config.id2label.items()}
        self._parts = {part: [index for index, one in named.items() if one == part] for part in PARTS}
        if not any(self._parts.values()):
            raise EncodersError(
                f"the classes of {folder} are no parts of people; use a model that was trained for human parsing"
            )

    def find(self, picture: Pixels) -> dict[str, Mask]:
        """Masks bool [h, w] by the names of ``PARTS``, of a picture uint8 [h, w, 3] RGB. They do not overlap."""
        classes = self._classes(picture)
        return {part: np.isin(classes, indices) for part, indices in self._parts.items()}


class UniversalSegmenter:
    """A mask-classifying model of transformers (Mask2Former, MaskFormer, ...) with a class called person."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        self._network = load_network(AutoModelForUniversalSegmentation, folder).to(device)
        self._processor = load_processor(AutoImageProcessor, folder)
        self._class = _person_class(self._network.config, folder)

    @torch.inference_mode()
    def people(self, picture: Pixels) -> Mask:
        inputs = self._processor(images=Image.fromarray(picture), return_tensors="pt").to(self._network.device)
        output = self._network(pixel_values=inputs["pixel_values"])
        height, width = picture.shape[:2]
        (classes,) = self._processor.post_process_semantic_segmentation(output, target_sizes=[(height, width)])
        mask: Mask = (classes == self._class).cpu().numpy()
        return mask


class GroundedSegmenter:
    """SAM on the boxes that Grounding DINO finds for a phrase."""

    LEAST = 0.3
    """Score of a box to count, of the detector for the whole phrase."""

    def __init__(self, detector: Path, sam: Path, device: str = "cpu", phrase: str = "a person") -> None:
        self._detector, self._sam = WordDetector(detector, device), BoxSegmenter(sam, device)
        self._phrase = phrase

    def people(self, picture: Pixels, least: float = LEAST) -> Mask:
        found = self._detector.find(picture, [self._phrase])
        return self.inside(picture, found.boxes[found.scores > least])

    def inside(self, picture: Pixels, boxes: NDArray[np.float32]) -> Mask:
        """What SAM takes for the things in boxes [n, 4] (left, top, right, bottom), together."""
        return np.asarray(self._sam.inside(picture, boxes).any(axis=0))


def load_segmenter(folder: Path, device: str = "cpu") -> Segmenter:
    """Loads what a package's segmenter folder holds: segmenter.onnx; or a transformers model; or the two folders
    grounding_dino/ and sam/.

    Raises:
        EncodersError: it holds none of these, or the model knows no person.
    """
    if (folder / BUILT_IN_FILE).is_file():
        return BuiltInSegmenter(folder / BUILT_IN_FILE, device)
    if (folder / "grounding_dino").is_dir() and (folder / "sam").is_dir():
        return GroundedSegmenter(folder / "grounding_dino", folder / "sam", device)
    if not (folder / "config.json").is_file():
        raise EncodersError(
            f"{folder} holds no segmenter; it needs {BUILT_IN_FILE}, a transformers segmentation model, or the folders "
            "grounding_dino and sam"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    universal = any(
        "Universal" in name or "MaskFormer" in name or "Mask2Former" in name for name in _architectures(config)
    )
    return UniversalSegmenter(folder, device) if universal else SemanticSegmenter(folder, device)


def _architectures(config: dict[str, Any]) -> Sequence[str]:
    return config.get("architectures") or ()


def _person_class(config: Any, folder: Path) -> int:
    for index, name in config.id2label.items():
        if PERSON in name.lower().replace(",", " ").split():
            return int(index)
    raise EncodersError(f"the classes of {folder} have no person; use a model that was trained with one (ADE20K, COCO)")


def _resized(values: NDArray[np.float32], picture: Pixels) -> NDArray[np.float32]:
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(values, "F").resize((width, height), Image.Resampling.BILINEAR))
