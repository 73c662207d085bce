"""Checks a story from the wire against a model's facts, and fills in every default.

Pure: the same message, catalog and seed give the same plan. Every bad field is found at once, and nothing that is bad
reaches the engine. Lengths are checked before any text is looked at closely, so that a hostile message costs little.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from storyloom.v1 import story_pb2 as pb
from storyloom_model.jobs import Control, FrameJob, StoryJob
from storyloom_model.methods.rounds import ADAPTERS, Rounds, WholePictures
from storyloom_model.noise import frame_seed
from storyloom_model.prompts import ComposedPrompt
from storyloom_server.catalog import ModelCatalog, ServedModel
from storyloom_server.identities import WantedIdentity, by_name, check_identities
from storyloom_server.poses import check_poses
from storyloom_server.redenoising import check_somebody, region_prompts
from storyloom_server.settings import ResolvedSettings, resolve_settings
from storyloom_server.store import StoryFeatures
from storyloom_server.texts import check_cast, check_frames, check_negative_prompt, check_text
from storyloom_server.violations import Findings, Violation

MAX_TITLE = 200


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A story in rounds, the identity adapter that sees their pictures, and what it reads of these."""

    rounds: Rounds
    adapter: str
    pictures: WholePictures


@dataclass(frozen=True, slots=True)
class StoryPlan:
    """A story that passed every check.

    ``job`` has every frame; at most ``window_frames`` of them are made together, ``window_anchors`` finished ones
    included, which are none where every frame is made on its own. ``story`` is what was asked for with every default
    filled in: planned again, it gives the same plan. It is without the pictures of references; what these show comes
    with ``with_features``. Those of poses are in it. With ``rounds`` it is made several times.
    """

    model: str
    job: StoryJob
    story: pb.Story
    preview_interval: int
    window_frames: int
    window_anchors: int
    wanted: tuple[WantedIdentity, ...] = ()
    reference_notes: tuple[str, ...] = ()
    rounds: RoundPlan | None = None

    def with_features(self, features: Sequence[StoryFeatures]) -> "StoryPlan":
        """The plan with what is known of its characters' looks.

        Raises:
            KeyError: features of a character are missing.
        """
        if not self.wanted:
            return self
        known = by_name(features)
        identities = tuple(each.with_features(known) for each in self.wanted)
        job = replace(self.job, identities=identities, identity_adapter=self.settings.identity_adapter)
        notes = tuple(f"{each.name}, {note}" for each in features for note in each.features.notes)
        return replace(self, job=job, reference_notes=notes)

    @property
    def settings(self) -> pb.Settings:
        """The settings without gaps."""
        return self.story.settings

    @property
    def frame_seeds(self) -> list[int]:
        """Seed of each frame."""
        return [frame.seed for frame in self.job.frames]


def random_seed() -> int:
    """A seed for a story that brings none: 63 random bits, so that it also fits a signed integer."""
    return secrets.randbits(63)


def plan_story(
    story: pb.Story, catalog: ModelCatalog, choose_seed: Callable[[], int] = random_seed
) -> StoryPlan | Sequence[Violation]:
    """Checks ``story`` and plans its generation.

    Returns:
        The plan, or every violation found. With an unknown model, the rest is checked by the default model's rules.
    """
    found = Findings()
    model = catalog.find(story.settings.model)
    if model is None:
        found.add("story.settings.model", f"is not served here; use one of {', '.join(catalog.names)}")
        model = catalog.default
    check_text(found, "story.title", story.title, limit=MAX_TITLE)
    check_text(found, "story.style", story.style)
    check_negative_prompt(found, story.negative_prompt, model)
    cast = check_cast(found, story, model.manifest.limits.max_characters)
    composed = check_frames(found, story, cast, model)
    settings = resolve_settings(found, story.settings, model, choose_seed)
    wanted = check_identities(found, story, model, catalog, settings.identity_adapter)
    controls = check_poses(found, story, model, catalog, composed, wanted, settings.identity_adapter)
    regions = {}
    if settings.redenoising is not None:
        regions = region_prompts(found, story, cast, wanted, model)
        check_somebody(found, wanted, settings.identity_adapter)
    if found:
        return found.violations
    plan = replace(_plan(story, model, settings, composed, controls), wanted=tuple(wanted))
    if settings.rounds is not None:
        method = model.manifest.identity_adapters[settings.identity_adapter].method
        plan = replace(plan, rounds=RoundPlan(settings.rounds, settings.identity_adapter, ADAPTERS[method]))
    if settings.redenoising is None:
        return plan
    return replace(plan, job=replace(plan.job, redenoising=settings.redenoising.plan(settings.steps, regions)))


def _plan(
    story: pb.Story,
    model: ServedModel,
    settings: ResolvedSettings,
    composed: Sequence[ComposedPrompt],
    controls: Sequence[Control | None],
) -> StoryPlan:
    seeds = [
        frame.seed if frame.HasField("seed") else frame_seed(settings.seed, index)
        for index, frame in enumerate(story.frames)
    ]
    job = StoryJob(
        frames=tuple(FrameJob(*each) for each in zip(composed, seeds, controls, strict=True)),
        negative_prompt=story.negative_prompt,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        solver=settings.solver,
        width=settings.width,
        height=settings.height,
        adapter=settings.adapter,
        cross_frame=settings.cross_frame,
        loras=settings.loras,
        method=settings.method,
        feature_injection=settings.feature_injection,
        freeu=settings.freeu,
        face_controlnet=model.manifest.face_controlnet(settings.identity_adapter),
    )
    limits = model.manifest.limits
    return StoryPlan(
        model=model.name,
        job=job,
        story=_complete(story, settings.to_wire(model.name), seeds),
        preview_interval=settings.preview_interval,
        window_frames=limits.window_frames,
        # Frames that are made on their own have nothing from anchors, which would cost their rows all the same.
        window_anchors=limits.window_anchors if settings.cross_frame else 0,
    )


def _complete(story: pb.Story, settings: pb.Settings, seeds: Sequence[int]) -> pb.Story:
    complete = pb.Story()
    complete.CopyFrom(story)
    complete.settings.CopyFrom(settings)
    for character in complete.characters:
        for reference in character.references:
            reference.ClearField("picture")
            reference.ClearField("mask")
    for frame, seed in zip(complete.frames, seeds, strict=True):
        frame.seed = seed
    return complete
