"""A story between its encoding and its last decoded frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from storyloom_model.attention import Place, TextKeysValues
from storyloom_model.controlnets.story import StoryControl
from storyloom_model.identity.streams import IdentityStreams
from storyloom_model.jobs import StoryJob
from storyloom_model.methods.injection import FeatureInjection
from storyloom_model.methods.method import Method, StepPlan
from storyloom_model.noise import derived_seed
from storyloom_model.solvers import Solver
from storyloom_model.step_rows import total_steps
from storyloom_model.variants import Variant

if TYPE_CHECKING:
    from storyloom_model.redenoising.second_pass import SecondPass


@dataclass(frozen=True, slots=True)
class CompatibilityKey:
    """What stories must share to take a step in one UNet call. Sizes in pixels; ``variant`` is of the weights;
    ``method`` is "" for story methods that share calls.
    """

    model: str
    width: int
    height: int
    variant: Variant
    dtype: str
    method: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LaterText:
    """What the UNet reads from step ``start`` on, counted from 0; the rest as of ``StoryState``."""

    start: int
    text: Tensor
    text_keys_values: TextKeysValues
    token_mask: Tensor
    pooled_text: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        kept = [self.text, self.token_mask, *(one for pair in self.text_keys_values for one in pair)]
        return sum(one.nbytes for one in kept) + (0 if self.pooled_text is None else self.pooled_text.nbytes)


@dataclass(slots=True, eq=False)
class StoryState:
    """All that one story carries from step to step. F frames, A anchors, K characters, T tokens, D text width.

    A guidance branch has G = F + A rows: the frames, then the anchors. ``latents`` and ``predicted`` are [F, C, h, w]
    float32, as the solver wants them and as the last step expects the end to be. ``text`` is [rows, T, D], the negative
    prompt's rows first if the story is guided; ``text_keys_values`` is what the layers of its UNet make of it.
    ``token_mask`` is bool [G, K, T]. ``anchors`` are the anchors' final latents and ``anchor_noise`` is what they are
    seen under, [A, C, h, w] float32 both. ``identity`` are the streams of all rows; None: nobody has references.
    ``controls`` are what ControlNets make of its frames' pictures.
    ``pooled_text`` is [rows, P] where the UNet takes it (SDXL), else None. ``unseen_text`` is bool [rows, T], True for
    tokens that a row leaves out; None: none. ``method`` is the story method, ``kept`` what it keeps from step to step,
    and ``layers`` where the UNet's self-attention layers are.
    ``previous_maps`` is [G, K, h, w], None until the first step. ``later`` takes the place of the text and its tokens
    when its step has come, see ``turn_to_later``. ``part_of`` is int64 [K] where some of the K are parts of characters:
    whose, by place, or -1 for characters. ``second`` is what a story with re-denoising carries beside: while its second
    pass runs, rows are those of its regions, and all of the above but ``solver``, ``latents`` and ``predicted`` stays
    as the first pass left it. ``injection`` is what a story carries that is made twice: its second run has a solver,
    latents, maps and text of its own. ``error`` says what went wrong with this story alone.
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
    method: Method
    layers: tuple[Place, ...]
    identity: IdentityStreams | None = None
    controls: tuple[StoryControl, ...] = ()
    pooled_text: Tensor | None = None
    unseen_text: Tensor | None = None
    previous_maps: Tensor | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    second: SecondPass | None = None
    injection: FeatureInjection | None = None
    error: str | None = None
    later: LaterText | None = None
    part_of: Tensor | None = None

    def turn_to_later(self) -> None:
        """Puts the later text in its place if the next step is to read it; to be called before every step."""
        if self.later is None or self.solver.index < self.later.start:
            return
        later, self.later = self.later, None
        if self.injection is not None and not self.injection.begun:
            early = LaterText(0, self.text, self.text_keys_values, self.token_mask, self.pooled_text)
            self.injection.texts = early, later  # The second run begins with the first text again.
        self.read(later)

    def read(self, later: LaterText) -> None:
        """Puts a text in the place of the one that is there."""
        self.text, self.text_keys_values = later.text, later.text_keys_values
        self.token_mask, self.pooled_text = later.token_mask, later.pooled_text

    @property
    def step_index(self) -> int:
        """Denoising steps done, in all runs and passes."""
        if self.second is not None and self.second.begun:
            return self.job.runs * self.solver.steps + self.solver.index - self.second.plan.start
        again = self.injection is not None and self.injection.begun
        return self.solver.index + (self.solver.steps if again else 0)

    @property
    def steps(self) -> int:
        """Denoising steps of all runs and passes."""
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
        kept += self.kept.values()
        more = (self.previous_maps, self.identity, self.pooled_text, self.unseen_text, self.later, self.part_of)
        optional = sum(one.nbytes for one in (*more, self.second, self.injection, *self.controls) if one is not None)
        return optional + sum(value.nbytes for value in kept)

    @property
    def rows(self) -> int:
        """Rows of the next step: frames and anchors, or those of the regions, times guidance branches."""
        if self.second is not None and self.step_index >= self.job.runs * self.solver.steps:
            return self.second.rows
        return self.job.rows

    @property
    def branches(self) -> int:
        """Guidance branches."""
        return 2 if self.job.guided else 1

    @property
    def crosses_frames(self) -> bool:
        """True when frames of this story can see each other."""
        may = self.job.cross_frame and self.method.crosses_frames
        return may and self.job.group > 1 and self.token_mask.shape[1] > 0

    @property
    def uses_maps(self) -> bool:
        """True when its steps want the maps of the step before: frames see each other, or identities have regions; or
        the second pass wants them.
        """
        return self.crosses_frames or self.identity is not None or self.second is not None

    @property
    def plan(self) -> StepPlan | None:
        """What its rows see of each other in the next step; None: foregrounds, or nothing (``crosses_frames``)."""
        return self.method.plan(self) if self.crosses_frames else None

    @property
    def step_rows(self) -> int:
        """Rows of the next UNet call: twice as many where queries are compared with those of a plain pass."""
        plan = self.plan
        return self.rows if plan is None or not plan.plain_queries else 2 * self.rows

    @property
    def wants_features(self) -> bool:
        """True when the next step is to tell the features of an up block."""
        return self.injection is not None and self.injection.wants_features(self.solver.index)

    @property
    def draw_keys(self) -> tuple[int, ...]:
        """What random draws of the next step begin with: 32 bits for each row of a branch, by its seed alone."""
        seeds = [*(frame.seed for frame in self.job.frames), *(anchor.seed for anchor in self.job.anchors)]
        return tuple(derived_seed(seed, self.solver.index) >> 32 for seed in seeds)

    @property
    def acting_identity(self) -> IdentityStreams | None:
        """The identity streams as they count in the next step."""
        weight = self.method.identity_weight(self.solver.index, self.solver.steps)
        if self.identity is None or weight == 1:
            return self.identity
        return replace(self.identity, scale=self.identity.scale * weight)
