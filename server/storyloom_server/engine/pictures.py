"""Finished pictures, with all that is told of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storyloom_model.identity.features import IdentityFeatures, ReferenceFeatures
from storyloom_model.jobs import JobError
from storyloom_server import messages
from storyloom_server.engine.backend import Backend, FindsCharacters, State
from storyloom_server.engine.references import encoder_of


def frame_done(
    backend: Backend, submit: messages.Submit, state: State, frame: int, picture: NDArray[np.uint8], latents: bytes
) -> messages.FrameDone:
    """What is told of a finished frame.

    Args:
        backend: of the job.
        submit: the job.
        state: of its story, which is done.
        frame: its index in the job.
        picture: uint8 [height, width, 3] RGB.
        latents: its final latents, as ``AnchorFrame`` takes them.

    Raises:
        JobError: the job wants the image encoder to look at it, and the backend has none.
    """
    looks = backend.looks(state, frame, picture)
    return messages.FrameDone(
        submit.job_id,
        frame,
        pixels(picture),
        latents,
        looks={name: np.asarray(look, dtype="<f4").tobytes() for name, look in looks.items()},
        missing=tuple(backend.missing(state, frame)) if isinstance(backend, FindsCharacters) else (),
        seen=_seen(backend, picture, submit.reads),
    )


def pixels(picture: NDArray[np.uint8]) -> messages.Pixels:
    """A uint8 [height, width, 3] array as a message."""
    height, width, _ = picture.shape
    return messages.Pixels(width=width, height=height, rgb=np.ascontiguousarray(picture).tobytes())


def _seen(backend: Backend, picture: NDArray[np.uint8], reads: str) -> bytes:
    """One thing that the image encoder says of a whole picture, as ``IdentityFeatures.to_bytes()``.

    Args:
        backend: of the job.
        picture: uint8 [h, w, 3] RGB.
        reads: the field of ``ReferenceFeatures``; "" for nothing at all.

    Raises:
        JobError: the backend has no encoder.
    """
    if not reads:
        return b""
    encoder = encoder_of(backend)
    if encoder is None:
        raise JobError("the model has no image encoder here to look at the pictures of a round with")
    found = encoder.encode_picture(picture)
    # The others are many times as large, and nobody reads them.
    kept = ReferenceFeatures(**{reads: getattr(found, reads)})
    return IdentityFeatures(encoder.fingerprint, (kept,)).to_bytes()
