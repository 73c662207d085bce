"""ConsiStory's feature injection: a story is made twice, the second time with features of its first run.

From the authors' code: at one step of the first run (timestep 261 of 1000) the features of the lowest up block say
which positions of two frames show the same. In the second run, from the same noise, in the largest self-attention
layers of the down and up blocks, the outputs of a frame's foreground become 0.8 of what the anchors have at the
corresponding positions and 0.2 of their own, in the prompt's branch. The anchors come first, one after the other, so
that each takes from those before it as they have become.

The story's state carries what the first run leaves; the second changes nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from storyloom_model.maps import ForegroundRule, Size, resize, united_mask
from storyloom_model.methods.correspondence import smoothed, sources
from storyloom_model.methods.method import lending_rows
from storyloom_model.methods.sharing import TURNS
from storyloom_model.noise import initial_noise
from storyloom_model.solvers import Solver

if TYPE_CHECKING:
    from storyloom_model.state import LaterText, StoryState

WEIGHT = 0.8
"""Of what is injected; the rest is the position's own."""
_TIME = 0.261
"""Of the step whose features count, as a share of the schedule's timesteps."""


@dataclass(slots=True, eq=False)
class FeatureInjection:
    """What a story with feature injection carries beside its state. G frames and anchors, N positions of a layer.

    Attributes:
        watched: the step of the first run whose features count, from 0.
        size: of the layers that features are injected in.
        anchors: how many first frames lend features, where the group has no anchors.
        features: [G, C, h, w], smoothed, in the UNet's dtype; from the watched step to the end of the first run.
        sources: int64 [G, N], see ``correspondence.sources``; None until the second run has begun.
        texts: what the first run read at its beginning, and what it has turned to; None: it has read one text.
    """

    watched: int
    size: Size
    anchors: int
    features: Tensor | None = None
    sources: Tensor | None = None
    texts: tuple[LaterText, LaterText] | None = None

    @classmethod
    def of(cls, solver: Solver, latent_size: Size, halvings: int, anchors: int) -> FeatureInjection:
        """For a story that begins. Its largest self-attention layers see the latents halved so often."""
        size = latent_size
        for _ in range(halvings):
            size = -(-size[0] // 2), -(-size[1] // 2)
        return cls(solver.nearest_step(_TIME), size, anchors)

    @property
    def begun(self) -> bool:
        """Whether the second run has."""
        return self.sources is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        kept = sum(one.nbytes for one in (self.features, self.sources) if one is not None)
        return kept + sum(text.nbytes for text in self.texts or ())

    def wants_features(self, step: int) -> bool:
        """Whether those of the next step are the ones."""
        return not self.begun and step == self.watched


@dataclass(frozen=True, slots=True, eq=False)
class InjectionPlan:
    """What the rows of a story take from each other in a step. G rows of the prompt's branch, L self-attention layers.

    Attributes:
        layers: [L], in which; only those of N positions do.
        sources: int64 [G, N], see ``correspondence.sources``.
        weight: of what is taken.
        turns: [G], below ``sharing.TURNS``: rows of a later turn take what those of an earlier one have become.
    """

    layers: tuple[bool, ...]
    sources: Tensor
    weight: float
    turns: tuple[int, ...]


def keep_features(state: StoryState, features: Tensor | None) -> None:
    """Takes what a step found, [G, C, h, w] of the prompt's branch, if it was the one."""
    if state.injection is not None and features is not None:
        state.injection.features = smoothed(features).to(features.dtype)  # In checkpoints: half the bytes count.


def begin_second_runs(states: Sequence[StoryState], rule: ForegroundRule, schedule: Any) -> None:
    """Takes those stories back to their noise that have just ended their first run.

    Args:
        states: of stories that are to take a step.
        rule: how maps become masks.
        schedule: the package's, for fresh solvers.
    """
    for state in states:
        own = state.injection
        if own is not None and not own.begun and state.solver.index == state.solver.steps:
            own.sources = _sources(state, own, rule)
            own.features = None
            _start_again(state, own, schedule)


def tensors(own: FeatureInjection) -> dict[str, Tensor]:
    """All that a checkpoint needs of it."""
    kept = {"features": own.features, "sources": own.sources}
    return {name: value for name, value in kept.items() if value is not None}


def restore(own: FeatureInjection, kept: Mapping[str, Tensor]) -> None:
    """Takes one that is as ``of`` made it to where ``tensors`` saw it."""
    own.features, own.sources = kept.get("features"), kept.get("sources")


def _sources(state: StoryState, own: FeatureInjection, rule: ForegroundRule) -> Tensor:
    if own.features is None or state.previous_maps is None:
        raise RuntimeError("a first run ended without features or maps")
    maps = state.previous_maps
    if state.part_of is not None:
        maps = maps[:, state.part_of < 0]  # Where a character is, its parts are.
    masks = united_mask(resize(maps, own.size), rule).view(-1, *own.size)
    frames = len(state.job.frames)
    takes = [place < frames for place in range(state.job.group)]
    return sources(own.features, masks, lending_rows(state, own.anchors), takes)


def _start_again(state: StoryState, own: FeatureInjection, schedule: Any) -> None:
    job = state.job
    state.solver = Solver(job.solver, schedule, job.steps)
    noise = initial_noise([frame.seed for frame in job.frames], tuple(state.latents.shape[1:]))
    state.latents = state.solver.start(noise.to(state.latents.device))
    state.previous_maps, state.kept = None, {}
    if own.texts is not None:
        early, state.later = own.texts
        state.read(early)
        own.texts = None


def turns(state: StoryState, own: FeatureInjection) -> tuple[int, ...]:
    """Of each row of a branch: those that lend have theirs one after the other, all others the last."""
    lending, last = lending_rows(state, own.anchors), TURNS - 1
    return tuple(min(sum(lending[:place]), last) if lends else last for place, lends in enumerate(lending))
