"""Makes the stories of the cases in each setting: with references by an identity adapter, or with words alone."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.identity.cases import IdentityCase, png
from storyloom_model.denoiser import Denoiser
from storyloom_model.identity.encoders.references import ReferenceEncoder
from storyloom_model.identity.features import Reference
from storyloom_model.jobs import FrameJob, Identity, StoryJob
from storyloom_model.noise import frame_seed


@dataclass(frozen=True)
class Setting:
    """How stories are made. ``adapter`` is an identity adapter, None for no references; ``described`` tells in words
    what the characters look like."""

    name: str
    adapter: str | None = None
    described: bool = False


NO_REFERENCE = Setting("no reference")
WORDS = Setting("words", described=True)


def features(encoder: ReferenceEncoder, case: IdentityCase) -> list[bytes]:
    """What the package's encoders say of each character's reference, as they would of a user's picture.

    Raises:
        ReferenceProblem: they find nobody in it.
    """
    return [encoder.encode([Reference(png(picture.image))])[0].to_bytes() for picture in case.references]


def story_job(
    denoiser: Denoiser, case: IdentityCase, setting: Setting, known: list[bytes], steps: int, seed: int
) -> StoryJob:
    """One case in one setting; a frame's noise is the same in all settings."""
    defaults = denoiser.manifest.defaults
    story_seed = frame_seed(seed, case.group.index)
    prompts = case.described if setting.described else case.generic
    identities = tuple(Identity(name, of) for name, of in zip(case.names, known, strict=True))
    return StoryJob(
        frames=tuple(FrameJob(prompt, frame_seed(story_seed, place)) for place, prompt in enumerate(prompts)),
        negative_prompt="",
        steps=steps,
        guidance_scale=defaults.guidance_scale,
        solver=defaults.solver,
        width=defaults.width,
        height=defaults.height,
        adapter=defaults.adapter,
        identities=identities if setting.adapter is not None else (),
        identity_adapter=setting.adapter,
    )
