"""Whether the ControlNets of a package can do what a story asks of them. Plain values: nothing is computed."""

from __future__ import annotations

from storyloom_model.jobs import Control, FrameJob, JobError, StoryJob
from storyloom_model.manifest import Manifest

MAX_STRENGTH = 2.0
"""Of a ControlNet in a frame."""


def check_controls(job: StoryJob, manifest: Manifest) -> None:
    """Refuses controls that cannot be.

    Args:
        job: as asked for; its ControlNets are among the manifest's.
        manifest: of the package.

    Raises:
        JobError: one of them cannot be; the message says what to change.
    """
    for place, frame in enumerate(job.frames):
        if frame.control is not None:
            _check(f"frame {place + 1}", frame, frame.control, job, manifest)


def _check(where: str, frame: FrameJob, control: Control, job: StoryJob, manifest: Manifest) -> None:
    name = control.controlnet
    if not 0 <= control.scale <= MAX_STRENGTH:
        raise JobError(f"{where} has a pose of strength {control.scale}; use one from 0 to {MAX_STRENGTH}")
    part = manifest.controlnets[name]
    if part.kind == "pose":
        return
    if not any(one.character in frame.prompt.spans for one in job.identities):
        raise JobError(f"{where} has a pose for {name}, and no character with references; add some, or leave it out")
    if job.identity_adapter != part.adapter:
        raise JobError(f"{where} has a pose for {name}, which goes with identity adapter {part.adapter}; use that")
