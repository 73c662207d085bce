"""The ControlNets of a story: which act in which of its frames, and what they make of pictures once for all steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from storyloom_model.controlnets.nets import ControlNet
from storyloom_model.controlnets.pictures import control_picture, draw_faces, fitted
from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.casting import row_streams
from storyloom_model.identity.encoders.crops import Landmarks, Pixels
from storyloom_model.identity.encoders.pictures import ReferenceProblem
from storyloom_model.identity.features import IdentityFeatures
from storyloom_model.jobs import Identity, JobError, StoryJob

FindFaces = Callable[[Pixels], Sequence[Landmarks]]
"""The five landmarks of each face of a picture [H, W, 3], the most prominent face first."""


@dataclass(frozen=True, slots=True, eq=False)
class StoryControl:
    """n frames of a story that a ControlNet acts in, in each of B guidance branches. Anchors are never of them.

    ``frames`` are their places. ``embedding`` [n, C, h, w] is what the ControlNet makes of their pictures, ``scale``
    how much it counts in each. ``tokens`` [B * n, T, D] are what it reads in place of the text, branch by branch; None:
    it reads the text.
    """

    net: str
    frames: tuple[int, ...]
    embedding: Tensor
    scale: tuple[float, ...]
    tokens: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.embedding.nbytes + (0 if self.tokens is None else self.tokens.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """What a ControlNet is shown of a frame."""

    frame: int
    picture: Pixels
    scale: float


def story_controls(
    job: StoryJob, nets: Mapping[str, ControlNet], adapter: IdentityAdapter | None, find_faces: FindFaces
) -> tuple[StoryControl, ...]:
    """What a pass of a story wants of ControlNets; nothing where it wants none.

    Args:
        job: checked.
        nets: by name.
        adapter: the identity adapter that the pass uses; None: nobody has references in it.
        find_faces: looks for faces in the pictures that those of kind identitynet are given.

    Raises:
        JobError: a picture cannot be used.
        FeaturesError: references cannot be used; see ``story_streams``.
    """
    made: list[StoryControl] = []
    for net in nets.values():
        if net.part.kind == "pose":
            shown = [one for one in _posed(job, net) if one.scale]
            made += [_control(net, shown)] if shown else []
        elif adapter is not None and adapter.name == net.part.adapter:
            shown = [one for one in _faced(job, net, find_faces) if one.scale]
            made += _reading_tokens(job, net, adapter, shown)
    return tuple(made)


def _control(net: ControlNet, shown: Sequence[_Shown], tokens: Tensor | None = None) -> StoryControl:
    return StoryControl(
        net.name,
        tuple(one.frame for one in shown),
        net.embed(np.stack([one.picture for one in shown])),
        tuple(one.scale for one in shown),
        tokens,
    )


def _posed(job: StoryJob, net: ControlNet) -> Iterator[_Shown]:
    for place, frame in enumerate(job.frames):
        control = frame.control
        if control is not None and control.controlnet == net.name:
            yield _Shown(place, _picture(job, place, control.picture), net.part.scale * control.scale)


def _faced(job: StoryJob, net: ControlNet, find_faces: FindFaces) -> Iterator[_Shown]:
    """Faces where the frame's own picture has them; else, of a frame with one character that has references, where the
    first of these has it. Features of earlier versions do not say where that is: such frames go without.
    """
    for place, frame in enumerate(job.frames):
        cast = [one for one in job.identities if one.character in frame.prompt.spans]
        control, scale, faces = frame.control, net.part.scale, []
        if not cast:
            continue
        if control is not None and control.controlnet == net.name:
            scale *= control.scale
            faces = list(find_faces(_picture(job, place, control.picture)))[: len(cast)]
            if not faces:
                raise JobError(
                    f"frame {place + 1}: no face was found in its pose, and {net.name} takes over where one is; give a "
                    "picture with a clear face, or leave it out"
                )
        elif len(cast) == 1:
            faces = _of_references(cast[0], job.width, job.height)
        if faces:
            # At no strength of the references there is nothing left of them.
            scale *= sum(one.scale for one in cast) / len(cast)
            yield _Shown(place, draw_faces(faces, job.width, job.height), scale)


def _of_references(identity: Identity, width: int, height: int) -> list[Landmarks]:
    for reference in IdentityFeatures.from_bytes(identity.features).references:
        if reference.landmarks is not None and reference.size is not None:
            return [fitted(reference.landmarks, reference.size, width, height)]
    return []


def _reading_tokens(
    job: StoryJob, net: ControlNet, adapter: IdentityAdapter, shown: Sequence[_Shown]
) -> Iterator[StoryControl]:
    """One control for all frames that have as many tokens: none is padded, hence none needs a mask."""
    if not shown:
        return
    kinds, of_row = row_streams(job, adapter)
    branches = range(2 if job.guided else 1)
    by_length: dict[int, list[_Shown]] = {}
    own: dict[tuple[int, int], Tensor] = {}
    for one in shown:
        for branch in branches:
            streams = kinds[of_row[branch * job.group + one.frame]]
            own[branch, one.frame] = torch.cat([stream.tokens for stream in streams])
        by_length.setdefault(len(own[0, one.frame]), []).append(one)
    for alike in by_length.values():
        yield _control(net, alike, torch.stack([own[branch, one.frame] for branch in branches for one in alike]))


def _picture(job: StoryJob, place: int, data: bytes) -> Pixels:
    try:
        return control_picture(data, job.width, job.height)
    except ReferenceProblem as error:
        raise JobError(f"frame {place + 1}, its pose: {error}") from error
