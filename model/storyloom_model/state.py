"""A story between its encoding and its last decoded frame."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from storyloom_model.attention import TextKeysValues
from storyloom_model.identity.streams import IdentityStreams
from storyloom_model.jobs import StoryJob
from storyloom_model.solvers import Solver
from storyloom_model.variants import Variant


@dataclass(frozen=True, slots=True)
class CompatibilityKey:
    """What stories must share to take a step in one UNet call. Sizes in pixels; ``variant`` is of the weights."""

    model: str
    width: int
    height: int
    variant: Variant
    dtype: str


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
    ``pooled_text`` is [rows, P] where the UNet takes it (SDXL), else None.
    ``previous_maps`` is [G, K, h, w], None until the first step. ``error`` says what went wrong with this story alone.
    ``part_of`` is int64 [K] where some of the K are parts of characters: whose, by place, or -1 for characters.
    ``later`` takes the place of the text and its tokens when its step has come, see ``turn_to_later``.
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
    error: str | None = None
    later: LaterText | None = None
    part_of: Tensor | None = None

    def turn_to_later(self) -> None:
        """Puts the later text in its place if the next step is to read it; to be called before every step."""
        if self.later is None or self.step_index < self.later.start:
            return
        later, self.later = self.later, None
        self.text, self.text_keys_values = later.text, later.text_keys_values
        self.token_mask, self.pooled_text = later.token_mask, later.pooled_text

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
        more = (self.previous_maps, self.identity, self.pooled_text, self.later)
        optional = sum(one.nbytes for one in more if one is not None)
        return optional + sum(value.nbytes for value in kept)

    @property
    def rows(self) -> int:
        """Rows of a batch step: frames and anchors, times guidance branches."""
        return self.job.rows

    @property
    def crosses_frames(self) -> bool:
        """True when frames of this story can see each other."""
        return self.job.cross_frame and self.job.group > 1 and self.token_mask.shape[1] > 0

    @property
    def uses_maps(self) -> bool:
        """True when its steps want the maps of the step before: frames see each other, or identities have regions."""
        return self.crosses_frames or self.identity is not None
