"""Face-Sim and Face-Sim (R): are the faces the same from frame to frame, and those of the references?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from benchmarks.stories.metric import Column, percent
from benchmarks.stories.similarity import PerPicture, Vectors, faces_among, faces_to_references
from benchmarks.stories.stories import MadeStory, Pixels
from storyloom_model.identity.encoders.faces import EMBEDDING, FaceEncoder

FACE_SIM = percent(
    "face_sim",
    "Face-Sim",
    "cosine of the recogniser's embeddings of a character's faces in two frames, over all pairs of frames with enough "
    "faces (Storynizor, IdentityStory: ArcFace)",
)
FACE_SIM_R = percent(
    "face_sim_r",
    "Face-Sim (R)",
    "the same between a frame's face and that of the character's reference (Storynizor)",
)
FACES = Column("faces", "faces found", "faces that the detector finds, as a part of the characters in the frame")


class FaceFinder(Protocol):
    """Finds the faces of a picture: rows of length 1, the most prominent first."""

    def find(self, picture: Pixels) -> Vectors: ...


class PackFaces:
    """The detector and the recogniser of an insightface pack."""

    def __init__(self, encoder: FaceEncoder) -> None:
        self._encoder = encoder

    def find(self, picture: Pixels) -> Vectors:
        found = [face.embedding for face in self._encoder.faces(picture)]
        return np.stack(found) if found else np.zeros((0, EMBEDDING), np.float32)


class FaceMetrics:
    """Scores with any finder of faces. Of a frame count as many faces as it has characters."""

    def __init__(
        self, finder: FaceFinder, frames: Column = FACE_SIM, reference: Column = FACE_SIM_R, found: Column = FACES
    ) -> None:
        self._finder = finder
        self._frames, self._reference, self._found = frames, reference, found

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._frames, self._reference, self._found

    def measure(self, story: MadeStory) -> dict[str, PerPicture]:
        casts = story.asked.casts
        faces = self._faces(story.pictures, casts)
        parts: PerPicture = [len(found) / len(cast) if cast else None for found, cast in zip(faces, casts, strict=True)]
        values = {self._frames.key: faces_among(faces, casts), self._found.key: parts}
        references = self._references(story)
        if references:
            values[self._reference.key] = faces_to_references(faces, casts, references)
        return values

    def _faces(self, pictures: Sequence[Pixels], casts: Sequence[Sequence[str]]) -> list[Vectors]:
        return [self._finder.find(picture)[: len(cast)] for picture, cast in zip(pictures, casts, strict=True)]

    def _references(self, story: MadeStory) -> dict[str, Vectors]:
        """The most prominent face of each reference that shows one."""
        found = {name: self._finder.find(picture_of(data))[:1] for name, data in story.asked.references.items()}
        return {name: face for name, face in found.items() if len(face)}


def picture_of(data: bytes) -> Pixels:
    """The pixels of a picture file, upright, without transparency."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
