"""Faces of a picture, through insightface: detection, alignment by five landmarks, and the recogniser's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from storyloom_model.identity.encoders.crops import Pixels, aligned_face
from storyloom_model.identity.encoders.errors import EncodersError

EMBEDDING = 512
SMALL_PICTURE = 400
"""Pictures up to this side are searched for faces at 256 pixels, larger ones at 640 too, for small faces in them."""
NESTED = 0.6
"""Part of its box that lies in a surer face's box from which on a find is a part of that face."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face of a picture.

    `box` is left, top, right, bottom, and `landmarks` [5, 2] are eyes, nose and mouth corners, the picture's left
    first; all in pixels. `score` is the detector's, in [0, 1]. `embedding` is [512], of length 1.
    """

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float32]
    score: float
    embedding: NDArray[np.float32]

    @property
    def size(self) -> float:
        """The shorter side of the box, in pixels."""
        return min(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def crop(self, picture: Pixels, size: int) -> Pixels:
        """The face cut out of its picture, upright, at `size` x `size` pixels."""
        return aligned_face(picture, self.landmarks, size)


class FaceEncoder:
    """Detector and recogniser of one insightface pack, such as buffalo_l or antelopev2."""

    def __init__(self, detector: Any, recogniser: Any) -> None:
        self._detector = detector
        self._recogniser = recogniser

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """Loads the one pack in `folder`/models.

        Raises:
            EncodersError: insightface is missing, or the folder does not hold exactly one complete pack.
        """
        pack = find_pack(folder)
        analysis = _insightface().FaceAnalysis(
            name=pack.name,
            root=str(folder),
            allowed_modules=["detection", "recognition"],
            providers=providers_for(device),
        )
        analysis.prepare(ctx_id=0 if device.startswith("cuda") else -1)
        missing = {"detection", "recognition"} - set(analysis.models)
        if missing:
            raise EncodersError(
                f"{pack} has no {' and no '.join(sorted(missing))} model; copy the complete pack (such as buffalo_l)"
            )
        return cls(analysis.det_model, analysis.models["recognition"])

    @property
    def recogniser(self) -> Path:
        """The recogniser's file."""
        return Path(self._recogniser.model_file)

    def faces(self, picture: Pixels) -> list[Face]:
        """All faces of a picture, uint8 [h, w, 3] RGB, the most prominent first: large, and near the middle."""
        bgr = np.ascontiguousarray(picture[..., ::-1])
        sizes = [(256, 256)] if max(picture.shape[:2]) <= SMALL_PICTURE else [(256, 256), (640, 640)]
        boxes, landmarks = self._detector.detect(bgr, input_size=sizes)
        if landmarks is None:
            return []
        found = [self._face(bgr, boxes[index], landmarks[index]) for index in _separate(boxes)]
        height, width = picture.shape[:2]
        return sorted(found, key=lambda face: prominence(face, width, height), reverse=True)

    def _face(self, bgr: Pixels, box: NDArray[np.float32], landmarks: NDArray[np.float32]) -> Face:
        embedding = self._recogniser.get_feat(aligned_face(bgr, landmarks)).flatten().astype(np.float32)
        left, top, right, bottom, score = (float(value) for value in box)
        return Face(
            (left, top, right, bottom), landmarks, score, embedding / max(float(np.linalg.norm(embedding)), 1e-6)
        )


def prominence(face: Face, width: int, height: int) -> float:
    """Area of a face, less the farther its centre is from the picture's."""
    x, y = face.centre
    away = np.hypot(x / width - 0.5, y / height - 0.5)
    left, top, right, bottom = face.box
    return float((right - left) * (bottom - top) * (1 - away))


def _separate(boxes: NDArray[np.float32]) -> list[int]:
    """The boxes [n, 5], surest first, less the parts of surer ones: a large face can look like a small one within."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        low, high = np.maximum(box[:2], boxes[kept, :2]), np.minimum(box[2:4], boxes[kept, 2:4])
        common = (high - low).clip(min=0).prod(1)
        if not (common > NESTED * (box[2:4] - box[:2]).prod()).any():
            kept.append(index)
    return kept


def find_pack(folder: Path) -> Path:
    """The folder of the one pack in `folder`/models.

    Raises:
        EncodersError: there is none, or more than one, or it is nested as in antelopev2's archive.
    """
    packs = sorted(path for path in (folder / "models").glob("*") if path.is_dir())
    if not packs:
        raise EncodersError(f"{folder} has no face pack; copy one to {folder / 'models'} (models/NAME/*.onnx)")
    if len(packs) > 1:
        names = ", ".join(path.name for path in packs)
        raise EncodersError(f"{folder / 'models'} holds several face packs ({names}); keep the one to use")
    (pack,) = packs
    if any(pack.glob("*.onnx")):
        return pack
    nested = next(pack.glob("*/*.onnx"), None)
    if nested is not None:
        raise EncodersError(f"{pack} holds its files one folder too deep; move {nested.parent}/*.onnx to {pack}")
    raise EncodersError(f"{pack} holds no .onnx files; copy the complete pack")


def providers_for(device: str) -> list[str]:
    """ONNX Runtime's providers for a torch device name, those that this build of it has."""
    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    import onnxruntime

    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return [name for name in wanted if name in onnxruntime.get_available_providers()]


def _insightface() -> Any:
    try:
        import insightface.app
    except ImportError as error:
        raise EncodersError(
            f"faces need insightface, which can't be imported ({error}); pip install 'storyloom[identity]'. "
            "Where libGL is what it lacks: pip install opencv-python-headless"
        ) from error
    return insightface.app
