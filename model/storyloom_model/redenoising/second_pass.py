"""A story's second pass: what the first leaves for it, whose rows it evaluates, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from storyloom_model.batch import Prediction
from storyloom_model.jobs import Redenoising, StoryJob
from storyloom_model.redenoising.masks import GrowingMasks, arrange
from storyloom_model.redenoising.mixing import mix
from storyloom_model.redenoising.plan import radius, region_frames, region_jobs
from storyloom_model.solvers import Solver, SolverHistory

if TYPE_CHECKING:
    from storyloom_model.state import StoryState

_CACHED, _SOLVER = "cached.", "solver."
_REGION_MAPS, _REGION_KEPT = "region_maps.", "region_kept."


@dataclass(slots=True, eq=False)
class StartPoint:
    """The first pass at the step that the second starts from: its latents and its solver's history. ``maps`` is the sum
    of its maps since, [F, characters, h, w].
    """

    latents: Tensor
    history: SolverHistory
    maps: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(one.nbytes for one in (self.latents, self.maps, *self.history.tensors.values()))


@dataclass(slots=True, eq=False)
class SecondPass:
    """What a story with re-denoising carries beside its state. F frames, K regions.

    ``plan`` is the job's. ``regions`` are states of the region jobs, which borrow latents and solver of the story and
    take no steps of their own; ``frames`` are the indexes of the frames of each in the story, int64. The first pass
    leaves ``start`` and, from there on, what each step predicted: ``cached``, [F, C, h, w] float32 with guidance. The
    second has begun when there are ``masks``; it uses up what is cached.
    """

    plan: Redenoising
    regions: Sequence[StoryState]
    frames: Sequence[Tensor]
    start: StartPoint | None = None
    cached: dict[int, Tensor] = field(default_factory=dict)
    masks: GrowingMasks | None = None

    @property
    def begun(self) -> bool:
        """Whether the story was taken back to the start step."""
        return self.masks is not None

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return sum(region.rows for region in self.regions)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        optional = [one for one in (self.start, self.masks) if one is not None]
        return sum(one.nbytes for one in (*self.cached.values(), *self.regions, *self.frames, *optional))


def with_second_pass(job: StoryJob, start: Callable[[StoryJob], StoryState]) -> StoryState:
    """A story at its beginning, with its second pass if it has one. ``start`` begins a pass."""
    state = start(job)
    if job.redenoising is not None:
        regions = [start(region) for region in region_jobs(job)]
        frames = [torch.tensor(indexes, device=state.latents.device) for indexes in region_frames(job)]
        state.second = SecondPass(job.redenoising, regions, frames)
    return state


def asked(state: StoryState) -> Sequence[StoryState]:
    """Whose rows the next step of a story evaluates: its own, or those of its regions. Changes nothing of the story."""
    second = state.second
    if second is None or not second.begun:
        return [state]
    for region, frames in zip(second.regions, second.frames, strict=True):
        region.solver, region.latents = state.solver, state.latents[frames]
    return second.regions


def combined(state: StoryState, predictions: Sequence[Prediction]) -> Prediction:
    """What the next step of a story predicts, of the predictions for those ``asked``; keeps what is needed later."""
    second = state.second
    first_run = state.injection is not None and not state.injection.begun
    if second is None or first_run:
        return predictions[0]
    if second.masks is None:
        _keep(second, state, predictions[0])
        return predictions[0]
    step = state.solver.index
    masks = second.masks.grown(radius(second.plan.growth, step, second.plan.start, state.solver.steps))
    own = [(frames, found.values) for frames, found in zip(second.frames, predictions, strict=True)]
    for region, found in zip(second.regions, predictions, strict=True):
        if found.maps is not None:
            region.previous_maps, region.kept = region.method.maps(region.kept, found.maps)
    return Prediction(mix(second.cached.pop(step), own, masks), None)


def _keep(second: SecondPass, state: StoryState, prediction: Prediction) -> None:
    step = state.solver.index
    if step < second.plan.start or prediction.maps is None:
        return
    maps = prediction.maps[: len(state.latents)]
    if step == second.plan.start:
        second.start = StartPoint(state.latents, state.solver.history(), maps)
    elif second.start is not None:
        second.start.maps = second.start.maps + maps
    # A copy: without guidance it is a part of what the whole batch has, which would be kept with it.
    second.cached[step] = prediction.values.clone()


def begin(state: StoryState, second: SecondPass, start: StartPoint, found: Tensor, factor: int, schedule: Any) -> None:
    """Takes a story from the end of its first pass back to the start step.

    Args:
        state: after the last step of its first pass.
        second: what it carries beside.
        start: what its first pass left.
        found: where the characters of the regions are, bool [F, K, h, w], on the CPU.
        factor: pixels of a latent position.
        schedule: the package's, for a fresh solver.
    """
    masks = arrange(found, second.plan.margin, factor)
    solver = Solver(state.job.solver, schedule, state.job.steps)
    solver.resume(start.history)
    device = state.latents.device
    second.masks = GrowingMasks(masks.distances.to(device), masks.order.to(device))
    state.solver, state.latents = solver, start.latents
    second.start = None


def tensors(second: SecondPass) -> dict[str, Tensor]:
    """All that a checkpoint needs of it. Copies: what the first pass has left may still be in use elsewhere."""
    kept = {f"{_CACHED}{step}": values for step, values in second.cached.items()}
    if second.masks is not None:
        kept |= {"distances": second.masks.distances, "order": second.masks.order}
        for place, region in enumerate(second.regions):
            if region.previous_maps is not None:
                kept[f"{_REGION_MAPS}{place}"] = region.previous_maps
            kept |= {f"{_REGION_KEPT}{place}.{name}": values for name, values in region.kept.items()}
    elif second.start is not None:
        history = second.start.history
        orders = torch.tensor([history.lower_order_steps, history.last_order])
        kept |= {"latents": second.start.latents, "maps": second.start.maps, "orders": orders}
        kept |= {_SOLVER + name: values for name, values in history.tensors.items()}
    return {name: values.clone() for name, values in kept.items()}


def restore(second: SecondPass, kept: Mapping[str, Tensor]) -> None:
    """Takes a second pass that is as ``encode`` made it to where ``tensors`` saw it.

    Raises:
        KeyError: tensors are missing.
    """
    second.cached = {int(step): values for step, values in named(kept, _CACHED).items()}
    if "distances" in kept:
        second.masks = GrowingMasks(kept["distances"], kept["order"])
        for place, region in enumerate(second.regions):
            region.previous_maps = kept.get(f"{_REGION_MAPS}{place}")
            region.kept = named(kept, f"{_REGION_KEPT}{place}.")
    elif "latents" in kept:
        lower_order_steps, last_order = kept["orders"].tolist()
        history = SolverHistory(second.plan.start, lower_order_steps, last_order, named(kept, _SOLVER))
        second.start = StartPoint(kept["latents"], history, kept["maps"])


def named(kept: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of some tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): values for name, values in kept.items() if name.startswith(prefix)}
