"""What a pass of a story starts from: all that is made of its job once, for all steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from storyloom_model.attention import Place, TextKeysValues
from storyloom_model.checks import method_name
from storyloom_model.controlnets.nets import ControlNet
from storyloom_model.controlnets.story import FindFaces, story_controls
from storyloom_model.encoder import TextEncoder
from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.identity.casting import story_streams, with_parts
from storyloom_model.identity.class_words import WordedPrompt, worded
from storyloom_model.identity.features import FeaturesError
from storyloom_model.identity.streams import IdentityStreams
from storyloom_model.identity.wording import first_fused_step, fused_text
from storyloom_model.jobs import JobError, StoryJob
from storyloom_model.latents import read_latents
from storyloom_model.manifest import Manifest
from storyloom_model.methods.consistory import ANCHORS
from storyloom_model.methods.injection import FeatureInjection
from storyloom_model.methods.method import Method
from storyloom_model.methods.names import APART
from storyloom_model.methods.registry import REGISTRY
from storyloom_model.methods.rounds import MOST_TOKENS
from storyloom_model.noise import initial_noise
from storyloom_model.solvers import Solver
from storyloom_model.state import CompatibilityKey, LaterText, StoryState
from storyloom_model.story_text import prompts_of, with_negative, with_prompts
from storyloom_model.variants import Variant

ReadText: TypeAlias = Callable[[Variant, Tensor], TextKeysValues]
"""What the UNet of a variant makes of a text, once for all steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Starter:
    """Begins passes with what is loaded of a package.

    Args:
        manifest: of the package.
        schedule: its noise schedule.
        text_encoder: its text encoder.
        layers: where the self-attention layers of its UNet are.
        finest: how often latents are halved before the largest of them.
        identity_adapters: by name.
        controlnets: by name.
        find_faces: looks for faces in the frames' pictures.
        text_keys_values: reads texts.
    """

    manifest: Manifest
    schedule: Any
    text_encoder: TextEncoder
    layers: tuple[Place, ...]
    finest: int
    identity_adapters: Mapping[str, IdentityAdapter]
    controlnets: Mapping[str, ControlNet]
    find_faces: FindFaces
    text_keys_values: ReadText

    def start(self, job: StoryJob, shape: tuple[int, int, int]) -> StoryState:
        """The beginning of a pass.

        Args:
            job: checked. With re-denoising, the first of its passes.
            shape: of the latents of a frame, [C, h, w].

        Raises:
            JobError: references or pictures cannot be used, or not with the story's method.
        """
        name, adapter = method_name(job, self.manifest), self._adapter_of(job)
        _check_texts(REGISTRY[name], adapter)
        words = None if adapter is None or adapter.words is None else [worded(one) for one in prompts_of(job)]
        told = job if words is None else with_prompts(job, [one.prompt for one in words])
        text = REGISTRY[name].text(told, self.text_encoder)
        device, variant = text.hidden.device, self.variant(job)
        noise = initial_noise([frame.seed for frame in job.frames], shape)
        solver = Solver(job.solver, self.schedule, job.steps)
        latents = solver.start(noise.to(device))
        token_mask, part_of = with_parts(text.token_mask, told, adapter, self.text_encoder)
        try:
            identity = self._identity(job, adapter)
            controls = story_controls(job, self.controlnets, adapter, self.find_faces)
            later = None if words is None else self._later_text(job, adapter, variant, words)
        except FeaturesError as error:
            raise JobError(str(error)) from error
        return StoryState(
            job=job,
            key=CompatibilityKey(
                model=self.manifest.name,
                width=job.width,
                height=job.height,
                variant=variant,
                dtype=str(text.hidden.dtype),
                method=name if name in APART else "",
            ),
            solver=solver,
            latents=latents,
            text=text.hidden,
            text_keys_values=self.text_keys_values(variant, text.hidden),
            token_mask=token_mask,
            predicted=torch.zeros_like(latents),
            anchors=read_latents(job.anchors, shape).to(device),
            anchor_noise=initial_noise([anchor.seed for anchor in job.anchors], shape).to(device),
            method=REGISTRY[name],
            layers=self.layers,
            identity=identity,
            controls=controls,
            pooled_text=text.pooled,
            unseen_text=text.unseen,
            part_of=part_of,
            later=later,
            injection=FeatureInjection.of(solver, (shape[1], shape[2]), self.finest, ANCHORS) if job.runs > 1 else None,
        )

    def variant(self, job: StoryJob) -> Variant:
        """What decides the weights that a job is made with. Nothing of it is checked."""
        adapter = self.identity_adapters.get(job.identity_adapter or "") if job.shows_references else None
        return Variant(
            adapter=Manifest.adapter_key(job.adapter),
            identity=adapter.name if adapter is not None and adapter.low_rank else None,
            loras=tuple(sorted((lora, weight) for lora, weight in job.loras if weight)),
        )

    def _adapter_of(self, job: StoryJob) -> IdentityAdapter | None:
        """The identity adapter that a pass uses; None where nobody has references."""
        if not job.shows_references or job.identity_adapter is None or job.redenoising is not None:
            return None  # The first of two passes is made from the prompts alone.
        return self.identity_adapters[job.identity_adapter]

    def _identity(self, job: StoryJob, adapter: IdentityAdapter | None) -> IdentityStreams | None:
        """What is made of the characters' references."""
        streams = None if adapter is None else story_streams(job, adapter)
        most = self.manifest.limits.max_identity_tokens
        if job.global_references is not None:
            most += MOST_TOKENS
        if streams is not None and streams.tokens > most:
            raise JobError(
                f"the references of one frame have {streams.tokens} identity tokens; {self.manifest.name} takes "
                f"{most}: give fewer characters references"
            )
        return streams

    def _later_text(
        self, job: StoryJob, adapter: IdentityAdapter | None, variant: Variant, prompts: Sequence[WordedPrompt]
    ) -> LaterText | None:
        """The text with the characters' persons in it; None where none of the steps reads it."""
        if adapter is None or adapter.words is None:
            return None
        start = first_fused_step(adapter.words_start, job.steps)
        if start >= job.steps:
            return None
        fused, token_mask = fused_text(job, adapter, adapter.words, prompts, self.text_encoder)
        text = with_negative(job, fused, self.text_encoder)
        keys_values = self.text_keys_values(variant, text.hidden)
        return LaterText(start, text.hidden, keys_values, token_mask, text.pooled)


def _check_texts(method: Method, adapter: IdentityAdapter | None) -> None:
    """Refuses two that would both edit, or look for words in, a frame's text."""
    edits = adapter is not None and (adapter.words is not None or adapter.maker.by_parts)
    if adapter is not None and edits and type(method).text is not Method.text:
        raise JobError(
            f"identity adapter {adapter.name} goes by the words of each frame, which the story's method puts "
            "together otherwise; name another method, or another identity adapter"
        )
