"""ConsiStory (Tewel et al., "Training-Free Consistent Text-to-Image Generation", SIGGRAPH 2024; NVlabs/consistory).

From the authors' code: in the self-attention layers of the up blocks, from the second step on, every frame sees the
foreground of the anchors (the first two frames), of which each position is dropped with probability 0.5. The foreground
is the union of the characters' masks by Otsu's rule, of maps averaged over the last 20 steps. In steps 1 to n / 10
each query is mixed with that of a pass over the same latents in which frames do not see each other, by 0.9 falling to
0.818; its rows are in the same UNet call.

Reconstructed: maps are the mean of the cross-attention layers of all sizes, where the code takes those of 32 x 32; all
tokens of a character's description count, where it takes one; drop-out is drawn anew in each step and layer size. In
later windows of a story the group's anchors are the anchors.

The second run is in ``injection``, and FreeU, which the code switches on, is a setting of its own: see ``freeu``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from storyloom_model.methods.injection import WEIGHT, InjectionPlan, turns
from storyloom_model.methods.method import Method, StepPlan, lending_rows
from storyloom_model.methods.schedule import injected_steps, mixed_steps

if TYPE_CHECKING:
    from storyloom_model.state import StoryState

ANCHORS = 2
MASK_DROPOUT = 0.5
REMEMBERED_STEPS = 20
"""Steps whose maps the masks are of."""
_QUERY_FIRST, _QUERY_LAST = 0.9, 0.81836735
_KEPT = "maps"


class ConsiStory(Method):
    """The foreground of two anchors, thinned out, is seen by all."""

    def plan(self, state: StoryState) -> StepPlan:
        step, mixed = state.solver.index, mixed_steps(state.solver.steps)
        lending = lending_rows(state, ANCHORS)
        return StepPlan(
            layers=tuple(place == "up" and step > 0 for place in state.layers),
            shows=tuple(1 - MASK_DROPOUT if one else 0.0 for one in lending),
            keys=state.draw_keys,
            sees=(True,) * len(lending),
            masked=True,
            earlier_masks=True,
            plain_queries=_QUERY_FIRST + (_QUERY_LAST - _QUERY_FIRST) * step / mixed[-1] if step in mixed else 0.0,
            injection=self._injection(state),
        )

    def _injection(self, state: StoryState) -> InjectionPlan | None:
        own = state.injection
        if own is None or own.sources is None or state.solver.index not in injected_steps(state.solver.steps):
            return None
        layers = tuple(place != "mid" for place in state.layers)
        return InjectionPlan(layers, own.sources, WEIGHT, turns(state, own))

    def maps(self, kept: Mapping[str, Tensor], new: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        last = torch.cat([kept[_KEPT][1 - REMEMBERED_STEPS :], new[None]]) if kept else new[None]
        return last.mean(dim=0), {_KEPT: last}
