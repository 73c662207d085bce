"""StoryDiffusion's consistent self-attention (Zhou et al., "StoryDiffusion", NeurIPS 2024; HVision-NKU/StoryDiffusion).

From the authors' code: in the self-attention layers of the up blocks, every frame sees a random half of the positions
of the first frames (the id frames, four), drawn anew in each step. In the first tenth of the steps id frames see only
themselves, and the other frames all of the id frames. After that each layer of each step shares with probability 0.7,
and 0.9 from two fifths of the steps on.

Reconstructed: the code counts steps of fifty (5 and 20); here they are parts of the story's. It keeps the hidden states
of the id frames and makes later frames with them; here these are in the group, or in later windows the group's anchors
stand for them, made to the level of noise of the step. Frames of nobody see the id frames like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storyloom_model.methods.method import Method, StepPlan, lending_rows
from storyloom_model.noise import derived_seed

if TYPE_CHECKING:
    from storyloom_model.state import StoryState

ID_FRAMES = 4
RATE = 0.5
"""Share of the positions of an id frame that others see."""
_EARLY, _MIDDLE = 5, 20
_OF_STEPS = 50
_SHARES_FIRST, _SHARES_THEN = 0.7, 0.9


class StoryDiffusion(Method):
    """Random positions of the first frames are seen by all."""

    def plan(self, state: StoryState) -> StepPlan:
        job, step = state.job, state.solver.index
        up = [place == "up" for place in state.layers]
        lending = lending_rows(state, ID_FRAMES)
        progress = step * _OF_STEPS / state.solver.steps
        early = progress < _EARLY
        if not early:
            chance = _SHARES_FIRST if progress < _MIDDLE else _SHARES_THEN
            first = job.frames[0].seed
            up = [one and derived_seed(first, step, layer) < chance * 2**64 for layer, one in enumerate(up)]
        return StepPlan(
            layers=tuple(up),
            shows=tuple((1.0 if early else RATE) if one else 0.0 for one in lending),
            keys=state.draw_keys,
            sees=tuple(not (early and one) for one in lending),
            masked=False,
        )
