"""What stands for CLIP and ArcFace where pictures come from the built-in model, which draws a world of its own.

Neither was trained on its illustrations. The attribute reader (`quality.reader`) and the judge (`quality.judge`) were:
the reader says what a picture of one person shows, the judge tells faces apart, and no adapter has seen either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.quality.attributes import VISIBLE, Reading
from benchmarks.quality.judge import EMBEDDING, Judge
from benchmarks.quality.network import Reader
from benchmarks.stories.faces import FaceMetrics
from benchmarks.stories.metric import Column
from benchmarks.stories.similarity import PerPicture, Vectors, among
from benchmarks.stories.stories import MadeStory, Pixels
from benchmarks.stories.wording import framing, scene, stated
from storyloom_model.identity.encoders.faces import FaceEncoder

TEXT = Column(
    "text_agreement",
    "text agreement",
    "part of what the prompt states, and the picture's framing shows, that the attribute reader reads: the looks of "
    "the character, in pictures of one, and the scene",
)
IDENTITY = Column(
    "identity_agreement",
    "identity agreement",
    "cosine of the judge's embeddings of a character's faces in two frames, over all pairs of frames with enough faces",
)
IDENTITY_R = Column(
    "identity_agreement_r", "identity to reference", "the same between a frame's face and that of the reference"
)
FOUND = Column("judged_faces", "faces judged", "faces that the judge is shown, as a part of the cast")
POSES = Column(
    "poses", "pose diversity", "part of the other frames whose pose is read as another one; pictures of one character"
)
_FACE = 112


class JudgedFaces:
    """A package's detector finds faces, the judge embeds them."""

    def __init__(self, detector: FaceEncoder, judge: Judge) -> None:
        self._detector = detector
        self._judge = judge

    def find(self, picture: Pixels) -> Vectors:
        crops = [face.crop(picture, _FACE) for face in self._detector.faces(picture)]
        return self._judge.embed(np.stack(crops)) if crops else np.zeros((0, EMBEDDING), np.float32)


def identity_agreement(detector: FaceEncoder, judge: Judge) -> FaceMetrics:
    """Face-Sim with the judge in the recogniser's place."""
    return FaceMetrics(JudgedFaces(detector, judge), IDENTITY, IDENTITY_R, FOUND)


class ReaderMetrics:
    """Text agreement and pose diversity by the attribute reader."""

    columns = (TEXT, POSES)

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def measure(self, story: MadeStory) -> dict[str, PerPicture]:
        readings = self._read(story.pictures)
        casts = story.asked.casts
        values: dict[str, PerPicture] = {
            TEXT.key: [
                text_agreement(reading, prompt, story.asked.descriptions(frame))
                for frame, (reading, prompt) in enumerate(zip(readings, story.prompts, strict=True))
            ]
        }
        if all(len(cast) == 1 for cast in casts):
            values[POSES.key] = among(len(readings), lambda a, b: float(readings[a]["pose"] != readings[b]["pose"]))
        return values

    def _read(self, pictures: Sequence[Pixels]) -> list[Reading]:
        return self._reader.read(np.stack(pictures))


def text_agreement(reading: Reading, prompt: str, descriptions: Sequence[str]) -> float | None:
    """The part of what is stated that is read; None where nothing is stated in words that are known.

    Args:
        reading: what the reader names.
        prompt: of the picture.
        descriptions: of those in it. The reader reads pictures of one person: of several it is asked the scene alone.
    """
    visible = VISIBLE[framing(prompt) or "portrait"]
    wanted = stated(descriptions[0]) if len(descriptions) == 1 else {}
    answers = [reading[name] in values for name, values in wanted.items() if name in visible]
    place = scene(prompt)
    if place is not None:
        answers.append(reading["scene"] == place)
    return sum(answers) / len(answers) if answers else None
