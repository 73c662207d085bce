"""What a story method is to the engine: a few pure functions of a job and of the steps done.

A method decides what a frame's text is, what of each frame the others see in a step, which maps the masks of the next
step come from, and how much identities count. It holds no state: what it wants to keep from step to step lies in the
story's state, and is in its checkpoints. Nothing that it decides depends on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from storyloom_model.story_text import StoryText, plain_text

if TYPE_CHECKING:
    from storyloom_model.encoder import TextEncoder
    from storyloom_model.jobs import StoryJob
    from storyloom_model.methods.injection import InjectionPlan
    from storyloom_model.state import StoryState


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the rows of a story see of each other in one step. G rows of a branch, L self-attention layers.

    Attributes:
        layers: [L], the layers in which anything is seen, in the UNet's order.
        shows: [G], the share of its positions that a row shows there, 0 to 1; which ones, ``keys`` decide.
        keys: [G], 32 bits each.
        sees: [G], False for rows that see only themselves.
        masked: whether of these positions only the foreground is shown.
        earlier_masks: the foreground is that of ``StoryState.previous_maps`` in all layers, and not of this pass.
        plain_queries: in ``layers``, the part of each query that is taken from a pass over the same rows in which
            nobody sees another; above 0 the story takes twice as many rows in the step.
        injection: what rows take from each other's outputs; None: nothing.
    """

    layers: tuple[bool, ...]
    shows: tuple[float, ...]
    keys: tuple[int, ...]
    sees: tuple[bool, ...]
    masked: bool
    earlier_masks: bool = False
    plain_queries: float = 0.0
    injection: InjectionPlan | None = None


class Method:
    """A story method. What a class does not override is as in Storynizor: frames see each other's foreground."""

    crosses_frames: ClassVar[bool] = True
    """Whether frames see each other at all."""

    def text(self, job: StoryJob, encoder: TextEncoder) -> StoryText:
        """What the UNet is told of each row."""
        return plain_text(job, encoder)

    def plan(self, state: StoryState) -> StepPlan | None:
        """The next step of a story whose frames see each other; None: all rows show their foreground in all layers."""
        return None

    def maps(self, kept: Mapping[str, Tensor], new: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """After a step: the maps that the next one takes masks and regions from, and what is kept.

        Args:
            kept: what the last call kept; nothing before the first step.
            new: maps of the step, [G, K, h, w].
        """
        return new, kept

    def identity_weight(self, step: int, steps: int) -> float:
        """Multiplies the scale of every identity stream in a step."""
        return 1.0


def lending_rows(state: StoryState, count: int) -> tuple[bool, ...]:
    """The rows of a group, True for those that others take their looks from: a story's first frames.

    In later windows of a long story, and for frames made anew, these are the anchors, which are frames of before.

    Args:
        state: of the story.
        count: how many of the first frames, where there are no anchors.
    """
    frames, anchors = len(state.job.frames), len(state.job.anchors)
    return tuple(place >= frames if anchors else place < count for place in range(frames + anchors))
