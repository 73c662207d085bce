"""What is to be said of a reference's face: how well a person is told by it. Notes are for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from storyloom_model.identity.encoders.crops import Mask, Pixels, aligned_face
from storyloom_model.identity.encoders.faces import Face
from storyloom_model.identity.encoders.pictures import ReferenceProblem

TINY, SMALL = 12.0, 28.0
"""Sides of faces in pixels: under the first nothing tells a person, under the second little."""
SHARPNESS = 0.02
"""Least mean squared difference of neighbours in a face, as a part of its variance; blurred faces have less."""
TURNED = 0.3
"""How far the nose may be from between the eyes, in distances of the eyes."""


def choose_face(faces: Sequence[Face], mask: Mask | None) -> tuple[Face, list[str]]:
    """The face that a reference is about, and notes: with a mask the face in it, else the most prominent one.

    Raises:
        ReferenceProblem: there is no face, or it is too small.
    """
    if not faces:
        raise ReferenceProblem("no face was found; use a picture that shows the face from the front, upright and large")
    face = faces[0] if mask is None else max(faces, key=lambda each: _inside(each, mask))
    notes = []
    if len(faces) > 1:
        rule = "the largest near the middle" if mask is None else "the one in the mask"
        x, y = face.centre
        notes.append(f"{len(faces)} faces were found: {rule} was taken, at ({x:.0f}, {y:.0f})")
    if face.size < TINY:
        raise ReferenceProblem(
            f"the face is only {face.size:.0f} pixels wide; use a picture with a face of at least {SMALL:.0f}"
        )
    if face.size < SMALL:
        notes.append(f"the face is only {face.size:.0f} pixels wide: a larger one is recognised better")
    return face, notes


def judge_face(picture: Pixels, face: Face) -> list[str]:
    """Notes on a blurred face and on one that looks to the side."""
    notes = []
    if sharpness(picture, face) < SHARPNESS:
        notes.append("the face is blurred: a sharp picture is recognised better")
    if turn(face) > TURNED:
        notes.append("the face is seen from the side: one from the front is recognised better")
    return notes


def sharpness(picture: Pixels, face: Face) -> float:
    """Mean squared difference of neighbouring pixels of the face at its own size (at most 112), over its variance."""
    crop = aligned_face(picture, face.landmarks, int(min(112, max(16, face.size)))).mean(2)
    steps = (np.diff(crop, axis=0) ** 2).mean() + (np.diff(crop, axis=1) ** 2).mean()
    return float(steps / 2 / max(crop.var(), 1.0))


def turn(face: Face) -> float:
    """0 from the front; from about 0.3 on a side view: where the nose is between the eyes, whatever the head's tilt."""
    left, right, nose = face.landmarks[:3]
    across = right - left
    return float(abs(np.dot(nose - (left + right) / 2, across)) / max(float(np.dot(across, across)), 1e-6))


def _inside(face: Face, mask: Mask) -> float:
    left, top, right, bottom = (max(0, round(value)) for value in face.box)
    return float(mask[top:bottom, left:right].sum())
