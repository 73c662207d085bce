"""How well the faces of held-out pictures are found: recall, false finds, and the error of landmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from storyloom_model.identity.encoders.crops import Pixels
from storyloom_training.identity.scenes import Scene

Found = Callable[[Pixels], Sequence[tuple[Sequence[float], NDArray[np.float32]]]]
"""A picture -> boxes (left, top, right, bottom) and landmarks [5, 2], in its pixels."""


@dataclass(frozen=True)
class Detection:
    """`recall` of clear faces at an IoU of 0.5, by the width of the face in pixels too; `false_finds` a picture: boxes
    that no face, clear or not, overlaps; `landmark_error`: mean distance over the distance of the eyes."""

    pictures: int
    faces: int
    recall: float
    false_finds: float
    landmark_error: float
    recall_by_width: dict[str, float]

    def record(self) -> dict[str, object]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


WIDTHS = (0, 16, 32, 64, 1000)


def measure_detection(found: Found, scenes: Iterable[Scene]) -> Detection:
    """Runs a detector over scenes."""
    hits: list[tuple[float, bool]] = []
    errors: list[float] = []
    pictures = false = 0
    for scene in scenes:
        pictures += 1
        boxes = found(scene.pixels)
        overlaps = np.array([[iou(box, face[:4]) for box, _ in boxes] for face in scene.faces])
        overlaps = overlaps.reshape(len(scene.faces), len(boxes))
        false += int((overlaps.max(0, initial=0) < 0.3).sum())
        for face, clear, row in zip(scene.faces, scene.clear, overlaps, strict=True):
            if not clear:
                continue
            hit = bool(len(row)) and row.max() >= 0.5
            hits.append((float(face[2] - face[0]), hit))
            if hit:
                points = face[4:].reshape(5, 2)
                apart = np.linalg.norm(boxes[int(row.argmax())][1] - points, axis=1).mean()
                errors.append(float(apart / np.linalg.norm(points[1] - points[0])))
    groups = {f"{low} to {high}": [hit for width, hit in hits if low <= width < high] for low, high in pairwise(WIDTHS)}
    return Detection(
        pictures, len(hits), float(np.mean([hit for _, hit in hits])), false / pictures, float(np.mean(errors)),
        {name: round(float(np.mean(group)), 4) for name, group in groups.items() if group},
    )  # fmt: skip


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    common = max(wide, 0.0) * max(high, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(common / max(sum(areas) - common, 1e-6))
