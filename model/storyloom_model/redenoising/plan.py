"""What a job with re-denoising takes: its second pass in regions. Plain numbers: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from storyloom_model.jobs import AnchorFrame, StoryJob

MAX_DILATION = 512
"""Of masks, in pixels."""


def region_frames(job: StoryJob) -> list[tuple[int, ...]]:
    """For each region, the indexes of the frames that show its character; none for a job without re-denoising."""
    if job.redenoising is None:
        return []
    return [
        tuple(index for index, frame in enumerate(job.frames) if region.character in frame.prompt.spans)
        for region in job.redenoising.regions
    ]


def region_jobs(job: StoryJob) -> list[StoryJob]:
    """The job of each region: the region prompt in every frame of its character, with that character's identity.

    All else is the story's, whose latents and solver the region borrows in every step. Anchors have finished, and so
    has feature injection.
    """
    if job.redenoising is None:
        return []
    return [
        replace(
            job,
            frames=tuple(replace(job.frames[index], prompt=region.prompt) for index in frames),
            anchors=(),
            identities=tuple(one for one in job.identities if one.character == region.character),
            redenoising=None,
            feature_injection=False,
        )
        for region, frames in zip(job.redenoising.regions, region_frames(job), strict=True)
    ]


def part(job: StoryJob, frames: Sequence[int], anchors: Sequence[AnchorFrame] = ()) -> StoryJob:
    """The job of some frames of a story, with what it needs of identities and regions."""
    chosen = replace(job, frames=tuple(job.frames[index] for index in frames), anchors=tuple(anchors))
    redenoising = job.redenoising
    if redenoising is not None:
        regions = tuple(region for region in redenoising.regions if region.character in chosen.characters)
        redenoising = replace(redenoising, regions=regions) if regions else None
    return replace(
        chosen,
        # Of those that only other frames show, nothing is to be known here.
        identities=tuple(one for one in job.identities if one.character in chosen.characters),
        redenoising=redenoising,
    )


def radius(growth: int, step: int, start: int, steps: int) -> int:
    """By how many pixels masks have grown at a step of the second pass: nothing at first, nearly all at the end."""
    return growth * (step - start) // (steps - start)
