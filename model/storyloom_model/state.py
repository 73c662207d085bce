"""A story between its encoding and its last decoded frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from storyloom_model.attention import TextKeysValues
from storyloom_model.identity.streams import IdentityStreams
from storyloom_model.jobs import StoryJob
from storyloom_model.redenoising.plan import total_steps
from storyloom_model.solvers import Solver
from storyloom_model.variants import Variant

if TYPE_CHECKING:
    from storyloom_model.redenoising.second_pass import SecondPass


@dataclass(frozen=True, slots=True)
class CompatibilityKey:
    """What stories must share to take a step in one UNet call. Sizes in pixels; ``variant`` is of the weights."""

    model: str
    width: int
    height: int
    variant: Variant
    dtype: str


@dataclass(slots=True, eq=False)
class StoryState:
    """All that one story carries from step to step. F frames, A anchors, K characters, T tokens, D text width.

    A guidance branch has G = F + A rows: the frames, then the anchors. ``latents`` and ``predicted`` are [F, C, h, w]
    float32, as the solver wants them and as the last step expects the end to be. ``text`` is [rows, T, D], the negative
    prompt's rows first if the story is guided; ``text_keys_values`` is what the layers of its UNet make of it.
    ``token_mask`` is bool [G, K, T]. ``anchors`` are the anchors' final latents and ``anchor_noise`` is what they are
    seen under, [A, C, h, w] float32 both. ``identity`` are the streams of all rows; None: nobody has references.
    ``pooled_text`` is [rows, P] where the UNet takes it (SDXL), else None.
    ``previous_maps`` is [G, K, h, w], None until the first step. ``second`` is what a story with re-denoising carries
    beside: while its second pass runs, rows are those of its regions, and all of the above but ``solver``, ``latents``
    and ``predicted`` stays as the first pass left it. ``error`` says what went wrong with this story alone.
    """

    job: StoryJob
    key: CompatibilityKey
    solver: Solver
    latents: Tensor
    text: Tensor
    text_keys_values: TextKeysValues
    token_mask: Tensor
    predicted: Tensor
    anchors: Tensor
    anchor_noise: Tensor
    identity: IdentityStreams | None = None
    pooled_text: Tensor | None = None
    previous_maps: Tensor | None = None
    second: SecondPass | None = None
    error: str | None = None

    @property
    def step_index(self) -> int:
        """Denoising steps done, in both passes."""
        if self.second is not None and self.second.begun:
            return self.solver.steps + self.solver.index - self.second.plan.start
        return self.solver.index

    @property
    def steps(self) -> int:
        """Denoising steps of all passes."""
        return total_steps(self.job)

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self.step_index >= self.steps

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the story, the solver's history included; keys and values are most of them."""
        own = (self.latents, self.predicted, self.anchors, self.anchor_noise, self.text, self.token_mask)
        kept = [*own, *(one for pair in self.text_keys_values for one in pair), *self.solver.history().tensors.values()]
        optional = sum(
            one.nbytes for one in (self.previous_maps, self.identity, self.pooled_text, self.second) if one is not None
        )
        return optional + sum(value.nbytes for value in kept)

    @property
    def rows(self) -> int:
        """Rows of the next step: frames and anchors, or those of the regions, times guidance branches."""
        if self.second is not None and self.step_index >= self.solver.steps:
            return self.second.rows
        return self.job.rows

    @property
    def crosses_frames(self) -> bool:
        """True when frames of this story can see each other."""
        return self.job.cross_frame and self.job.group > 1 and self.token_mask.shape[1] > 0

    @property
    def uses_maps(self) -> bool:
        """True when its steps want the maps of the step before: frames see each other, or identities have regions; or
        the second pass wants them.
        """
        return self.crosses_frames or self.identity is not None or self.second is not None
