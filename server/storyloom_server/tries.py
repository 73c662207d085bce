"""Which jobs make a window's frames: the window itself, then frames again in which somebody was missing. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from storyloom_model.jobs import AnchorFrame, GlobalReferences, StoryJob
from storyloom_model.windows import Window, choose_anchors
from storyloom_server.accepted_story import AcceptedStory
from storyloom_server.engine.shapes import phases
from storyloom_server.scheduler import StorySpec

SEED_STEP = 3533
"""By which the seed of each further try is larger: the paper's."""


@dataclass(frozen=True, slots=True)
class Try:
    """One job of a story. ``number`` is 0 for the first of its frames."""

    window: Window
    number: int = 0

    @property
    def frames(self) -> tuple[int, ...]:
        """Indexes in the story of those that it makes."""
        return self.window.frames

    def seed(self, own: int) -> int:
        """What it makes a frame with whose seed is ``own``."""
        return (own + SEED_STEP * self.number) % 2**64

    def job(
        self, story: AcceptedStory, anchors: Sequence[AnchorFrame] = (), references: GlobalReferences | None = None
    ) -> StoryJob:
        """What the engine is to do, with what all frames see of the round before."""
        job = story.job_of(self.window, anchors, references)
        return replace(job, frames=tuple(replace(frame, seed=self.seed(frame.seed)) for frame in job.frames))

    def steps(self, story: AcceptedStory) -> int:
        """Denoising steps of it."""
        return story.steps_of(self.window)


def tries_allowed(story: AcceptedStory) -> int:
    """How often a frame may be made again."""
    return int(story.plan.settings.redenoising.retries)


def longer(spec: StorySpec, story: AcceptedStory, made: Try) -> StorySpec:
    """A story as admission sees it, with a further try to do."""
    shape = spec.shape
    more = phases(story.planned(made.window))
    return replace(spec, shape=replace(shape, steps=shape.steps + made.steps(story), phases=(*shape.phases, *more)))


def try_again(story: AcceptedStory, frame: int, number: int, finished: Collection[int]) -> Try:
    """A frame once more, by itself, as one that is redone: finished frames of the story lend it their looks.

    Args:
        frame: its index.
        number: of the try, from 1.
        finished: frames that may lend theirs.
    """
    casts = [tuple(one.prompt.spans) for one in story.plan.job.frames]
    anchors = choose_anchors(casts, [frame], finished, story.plan.window_anchors)
    return Try(Window((frame,), anchors), number)
