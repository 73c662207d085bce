"""A story between its encoding and its last decoded frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from storyloom_model.attention import Place, TextKeysValues
from storyloom_model.identity.streams import IdentityStreams
from storyloom_model.jobs import StoryJob
from storyloom_model.methods.method import Method, StepPlan
from storyloom_model.noise import derived_seed
from storyloom_model.solvers import Solver
from storyloom_model.variants import Variant


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


@dataclass(slots=True, eq=False)
class StoryState:
    """All that one story carries from step to step. F frames, A anchors, K characters, T tokens, D text width.

    A guidance branch has G = F + A rows: the frames, then the anchors. ``latents`` and ``predicted`` are [F, C, h, w]
    float32, as the solver wants them and as the last step expects the end to be. ``text`` is [rows, T, D], the negative
    prompt's rows first if the story is guided; ``text_keys_values`` is what the layers of its UNet make of it.
    ``token_mask`` is bool [G, K, T]. ``anchors`` are the anchors' final latents and ``anchor_noise`` is what they are
    seen under, [A, C, h, w] float32 both. ``identity`` are the streams of all rows; None: nobody has references.
    ``pooled_text`` is [rows, P] where the UNet takes it (SDXL), else None. ``unseen_text`` is bool [rows, T], True for
    tokens that a row leaves out; None: none. ``method`` is the story method, ``kept`` what it keeps from step to step,
    and ``layers`` where the UNet's self-attention layers are.
    ``previous_maps`` is [G, K, h, w], None until the first step. ``error`` says what went wrong with this story alone.
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
    pooled_text: Tensor | None = None
    unseen_text: Tensor | None = None
    previous_maps: Tensor | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    error: str | None = None

    @property
    def step_index(self) -> int:
        """Denoising steps done."""
        return self.solver.index

    @property
    def steps(self) -> int:
        """Denoising steps in all."""
        return self.solver.steps

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self.solver.index >= self.solver.steps

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the story, the solver's history included; keys and values are most of them."""
        own = (self.latents, self.predicted, self.anchors, self.anchor_noise, self.text, self.token_mask)
        kept = [*own, *(one for pair in self.text_keys_values for one in pair), *self.solver.history().tensors.values()]
        kept += self.kept.values()
        others = (self.previous_maps, self.identity, self.pooled_text, self.unseen_text)
        optional = sum(one.nbytes for one in others if one is not None)
        return optional + sum(value.nbytes for value in kept)

    @property
    def rows(self) -> int:
        """Rows of a batch step: frames and anchors, times guidance branches."""
        return self.job.rows

    @property
    def crosses_frames(self) -> bool:
        """True when frames of this story can see each other."""
        may = self.job.cross_frame and self.method.crosses_frames
        return may and self.job.group > 1 and self.token_mask.shape[1] > 0

    @property
    def uses_maps(self) -> bool:
        """True when its steps want the maps of the step before: frames see each other, or identities have regions."""
        return self.crosses_frames or self.identity is not None

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
