"""What the server knows of a story that it has accepted, and where that is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.jobs import AnchorFrame, GlobalReferences, StoryJob
from storyloom_model.redenoising.plan import part
from storyloom_model.step_rows import total_steps
from storyloom_model.windows import Window, plan_windows
from storyloom_server.engine.shapes import compatibility_key, phases
from storyloom_server.event_log import LoggedEvent
from storyloom_server.messages import Scheduling
from storyloom_server.scheduler import StoryShape, StorySpec
from storyloom_server.store import Event
from storyloom_server.validate import StoryPlan


@dataclass(frozen=True, slots=True)
class AcceptedStory:
    """An accepted story, new or taken up again after a crash.

    Args:
        story_id: given by the server.
        tenant: who asked for it.
        plan: the validated story.
        scheduling: how it shares the device.
        parent_id: the story whose frames it takes over; "" for none.
        reused: indexes of the parent's frames that it takes over.
        prompt_flags: what the safety checks found in frames' texts and let through, by the frame's index.
        accepted_at: epoch seconds.
        crashes: how often an engine or server died over it.
        sequence_reserved: clients may have seen event numbers up to this one.
        events: what is in the store.
        looked: monotonic seconds at which the look at its references began and ended; None for a story taken up again.
    """

    story_id: str
    tenant: str
    plan: StoryPlan
    scheduling: Scheduling
    accepted_at: float
    parent_id: str = ""
    reused: frozenset[int] = frozenset()
    prompt_flags: Mapping[int, str] = field(default_factory=dict)
    crashes: int = 0
    sequence_reserved: int = 0
    events: tuple[LoggedEvent, ...] = ()
    looked: tuple[float, float] | None = None

    @property
    def windows(self) -> list[Window]:
        """The jobs that make the frames that are not taken over, in order. The same after every restart."""
        casts = [tuple(frame.prompt.spans) for frame in self.plan.job.frames]
        # In rounds, frames see whole pictures and no anchors.
        anchors = self.plan.window_anchors if self.plan.rounds is None else 0
        return plan_windows(casts, self.plan.window_frames, anchors, finished=self.reused)

    def job_of(
        self, window: Window, anchors: Sequence[AnchorFrame] = (), references: GlobalReferences | None = None
    ) -> StoryJob:
        """The job that makes a window; ``references``: in a round that has them."""
        job = part(self.plan.job, window.frames, anchors)
        if self.plan.rounds is None or references is None:
            return job
        return replace(job, identity_adapter=self.plan.rounds.adapter, global_references=references)

    @property
    def rounds(self) -> int:
        """How often every window is made."""
        return 1 if self.plan.rounds is None else self.plan.rounds.rounds.count

    def steps_of(self, window: Window) -> int:
        """Denoising steps of a window."""
        return total_steps(self.planned(window))

    @property
    def steps(self) -> int:
        """Denoising steps of all windows in all rounds."""
        return self.rounds * sum(self.steps_of(window) for window in self.windows)

    def planned(self, window: Window) -> StoryJob:
        """The job of a window before its anchors are made: right in all that is counted."""
        frames = (self.plan.job.frames[index] for index in window.anchors)
        return self.job_of(window, [AnchorFrame(frame.prompt, frame.seed, b"") for frame in frames])

    def spec(self, deadline: float | None) -> StorySpec:
        """The story as admission sees it: its largest window, and the steps of all windows of all rounds."""
        job, windows = self.plan.job, self.windows
        largest = max(windows, key=lambda window: len(window.frames) + len(window.anchors))
        shape = StoryShape(
            frames=len(largest.frames),
            anchors=len(largest.anchors),
            branches=2 if job.guided else 1,
            pixels=job.width * job.height,
            steps=self.steps,
            phases=self.rounds * tuple(phase for window in windows for phase in phases(self.planned(window))),
            rounds=self.rounds,
        )
        return StorySpec(
            story_id=self.story_id,
            tenant=self.tenant,
            weight=self.scheduling.weight,
            priority=self.scheduling.priority,
            key=compatibility_key(self.plan.model, job),
            shape=shape,
            deadline=deadline,
        )


def logged(stored: Event) -> LoggedEvent:
    """An event as it was stored."""
    return LoggedEvent(pb.GenerateStoryResponse.FromString(stored.payload), durable=True, picture=stored.picture or "")
