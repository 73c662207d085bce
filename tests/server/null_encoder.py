"""Says what is in pictures without looking closely: the first pixel decides.

A red one shows no face, a blue one three of them; a magenta one kills the process, and a white one takes
STORYLOOM_TEST_ENCODE_SECONDS. STORYLOOM_TEST_ENCODERS is the fingerprint.
"""

import io
import os
import signal
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from storyloom_model.identity.encoders.pictures import ReferenceProblem
from storyloom_model.identity.features import Reference, ReferenceFeatures

RED, BLUE, DEADLY, WHITE = (255, 0, 0), (0, 0, 255), (255, 0, 255), (255, 255, 255)


class NullEncoder:
    """The embedding of a face is the picture's mean colour, and the size of its mask; garments have none."""

    fingerprint = os.environ.get("STORYLOOM_TEST_ENCODERS", "null-1")

    def encode_one(self, reference: Reference) -> tuple[ReferenceFeatures, Sequence[str]]:
        notes = []
        picture = np.asarray(Image.open(io.BytesIO(reference.picture)))
        first = tuple(int(value) for value in picture[0, 0])
        if first == RED:
            raise ReferenceProblem("no face was found; send a picture that shows the face from the front")
        if first == BLUE:
            notes.append("3 faces; the largest was taken")
        if first == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        if first == WHITE:
            time.sleep(float(os.environ.get("STORYLOOM_TEST_ENCODE_SECONDS", "0")))
        mask = np.asarray(Image.open(io.BytesIO(reference.mask))).mean() if reference.mask else 0.0
        face = np.array([*picture.mean((0, 1)), mask]).round().astype(np.float32)
        return ReferenceFeatures(reference.role, face if reference.role == "character" else None), notes
