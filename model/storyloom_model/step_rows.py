"""What every step of a job asks of the model: the one place that counts runs, passes and rows. Plain numbers: no torch.

Who tells of progress, and who plans the device's time, both read it here; what the engine does in a step is held
against it in tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from storyloom_model.jobs import FrameJob, StoryJob
from storyloom_model.methods.names import QUERIES_OF_A_PLAIN_PASS
from storyloom_model.methods.schedule import mixed_steps
from storyloom_model.redenoising.plan import region_jobs


@dataclass(frozen=True, slots=True)
class StepRows:
    """Steps, one after the other, that ask for the same.

    Attributes:
        steps: how many.
        groups: rows of each guidance branch that see each other, group by group; those of a plain pass are groups of 1.
        controlled: rows of each guidance branch that go through a ControlNet, once for each that they go through.
    """

    steps: int
    groups: tuple[int, ...]
    controlled: int


def step_rows(job: StoryJob) -> tuple[StepRows, ...]:
    """All steps of a job, in order. Its method must be named where it is one that takes more rows."""
    each = [*_runs(job), *_second_pass(job)]
    return tuple(
        StepRows(sum(one.steps for one in alike), *rows)
        for rows, alike in groupby(each, key=lambda one: (one.groups, one.controlled))
    )


def total_steps(job: StoryJob) -> int:
    """Steps of all runs and passes of a job."""
    return job.steps * job.runs + (0 if job.redenoising is None else job.steps - job.redenoising.start)


def _runs(job: StoryJob) -> Iterator[StepRows]:
    # With re-denoising these are made from the prompts alone.
    controlled = _controlled(job, faces=job.redenoising is None)
    for _ in range(job.runs):
        for step, count in _pieces(range(job.steps), mixed_steps(job.steps)):
            yield StepRows(count, _groups([job], step), controlled)


def _second_pass(job: StoryJob) -> Iterator[StepRows]:
    if job.redenoising is None:
        return
    regions = region_jobs(job)
    controlled = sum(_controlled(region, faces=True) for region in regions)
    for step, count in _pieces(range(job.redenoising.start, job.steps), mixed_steps(job.steps)):
        yield StepRows(count, _groups(regions, step), controlled)


def _pieces(steps: range, mixed: range) -> Iterator[tuple[int, int]]:
    """The first of each run of steps that are alike, and how many they are: those that mix queries, and the others."""
    edges = {min(max(edge, steps.start), steps.stop) for edge in (steps.start, mixed.start, mixed.stop, steps.stop)}
    for first, after in pairwise(sorted(edges)):
        yield first, after - first


def _groups(jobs: Sequence[StoryJob], step: int) -> tuple[int, ...]:
    mixing = [one for one in jobs if one.crosses_frames and one.method in QUERIES_OF_A_PLAIN_PASS]
    plain = sum(one.group for one in mixing) if step in mixed_steps(jobs[0].steps) else 0
    return (*(one.group for one in jobs), *[1] * plain)


def _controlled(job: StoryJob, *, faces: bool) -> int:
    return sum(_posed(job, frame) + (faces and _faced(job, frame)) for frame in job.frames)


def _posed(job: StoryJob, frame: FrameJob) -> bool:
    control = frame.control
    return control is not None and control.controlnet != job.face_controlnet and control.scale > 0


def _faced(job: StoryJob, frame: FrameJob) -> bool:
    """Whether a ControlNet reads faces: those of the frame's picture, or the one that its only character brings."""
    cast = sum(one.character in frame.prompt.spans for one in job.identities)
    if not job.face_controlnet or not cast:
        return False
    return cast == 1 or (frame.control is not None and frame.control.controlnet == job.face_controlnet)
