"""What the scheduler needs to know of a job."""

from collections.abc import Hashable

from storyloom_model.jobs import StoryJob
from storyloom_model.manifest import Manifest
from storyloom_model.methods.names import APART
from storyloom_model.step_rows import step_rows, total_steps
from storyloom_server import messages
from storyloom_server.engine.backend import Backend
from storyloom_server.scheduler import Phase, StoryShape, StorySpec


def compatibility_key(model: str, job: StoryJob) -> Hashable:
    """What jobs must share to take a step together, as far as is known without the weights.

    Of identity adapters some change weights and some do not; to be safe they all part jobs here.
    """
    identity = Manifest.adapter_key(job.identity_adapter) if job.shows_references else None
    loras = frozenset((name, weight) for name, weight in job.loras if weight)
    return (model, job.width, job.height, Manifest.adapter_key(job.adapter), identity, loras, _apart(job))


def story_shape(job: StoryJob) -> StoryShape:
    """What the job's cost depends on."""
    return StoryShape(
        frames=len(job.frames),
        anchors=len(job.anchors),
        branches=2 if job.guided else 1,
        pixels=job.width * job.height,
        steps=total_steps(job),
        phases=phases(job),
    )


def phases(job: StoryJob) -> tuple[Phase, ...]:
    """What its steps ask for, in order."""
    return tuple(Phase(one.steps, one.groups, one.controlled) for one in step_rows(job))


def story_spec(submit: messages.Submit, backend: Backend) -> StorySpec:
    """The job as the scheduler sees it; jobs share steps if the backend says that they have the same weights, and their
    methods let them.
    """
    job, scheduling = submit.job, submit.scheduling
    return StorySpec(
        story_id=submit.job_id,
        tenant=scheduling.tenant,
        weight=scheduling.weight,
        priority=scheduling.priority,
        key=(submit.model, job.width, job.height, backend.variant(job), _apart(job)),
        shape=story_shape(job),
        deadline=scheduling.deadline,
        done_steps=submit.done_steps,
        alone=scheduling.alone,
        preview_interval=submit.preview_interval,
    )


def _apart(job: StoryJob) -> str:
    """The method of a job whose steps are not shared with those of other methods."""
    return job.method if job.method in APART else ""
