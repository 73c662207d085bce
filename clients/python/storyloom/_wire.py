"""Between stories and their events and the messages of the wire contract; see `_wire_records` for the rest."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from storyloom._events import (
    Accepted,
    Done,
    FrameDone,
    Picture,
    Preview,
    Progress,
    Stage,
    StoryEvent,
    Timings,
)
from storyloom._poses import ControlKind, Pose
from storyloom._references import Blend, Keep, Reference, Role
from storyloom._story import Character, Consistency, Frame, FreeU, Redenoising, Rounds, Settings, Solver, Story
from storyloom.v1 import story_pb2, story_service_pb2

EventMessage = story_service_pb2.GenerateStoryResponse | story_service_pb2.WatchStoryResponse
_SOLVERS = {
    Solver.DDIM: story_pb2.SOLVER_DDIM,
    Solver.EULER: story_pb2.SOLVER_EULER,
    Solver.UNIPC: story_pb2.SOLVER_UNIPC,
}
_ROLES = {
    Role.CHARACTER: story_pb2.REFERENCE_ROLE_CHARACTER,
    Role.CLOTHES: story_pb2.REFERENCE_ROLE_CLOTHES,
}
_PARTS = {
    Keep.FACE: story_pb2.IDENTITY_PART_FACE,
    Keep.HAIR: story_pb2.IDENTITY_PART_HAIR,
    Keep.CLOTHES: story_pb2.IDENTITY_PART_CLOTHES,
    Keep.BODY: story_pb2.IDENTITY_PART_BODY,
}
CONTROL_KINDS: dict[int, ControlKind] = {
    story_pb2.CONTROL_KIND_POSE: ControlKind.POSE,
    story_pb2.CONTROL_KIND_IDENTITYNET: ControlKind.IDENTITYNET,
}
PART_NAMES = {int(number): part for part, number in _PARTS.items()}
SOLVER_NAMES = {int(number): solver for solver, number in _SOLVERS.items()}
_STAGES: dict[int, Stage] = {
    story_service_pb2.STORY_STAGE_QUEUED: Stage.QUEUED,
    story_service_pb2.STORY_STAGE_ENCODING: Stage.ENCODING,
    story_service_pb2.STORY_STAGE_DENOISING: Stage.DENOISING,
    story_service_pb2.STORY_STAGE_DECODING: Stage.DECODING,
}


def story_message(story: Story) -> story_pb2.Story:
    """Returns `story` as it is sent."""
    return story_pb2.Story(
        title=story.title,
        style=story.style,
        negative_prompt=story.negative_prompt,
        settings=settings_message(story.settings),
        characters=character_messages(story.characters),
        frames=[frame_message(frame) for frame in story.frames],
    )


def character_messages(cast: Mapping[str, Character]) -> list[story_pb2.Character]:
    """Returns the characters as they are sent."""
    return [
        story_pb2.Character(
            name=name,
            description=character.description,
            character_id=character.id,
            references=reference_messages(character.references),
            identity=_identity_message(character),
        )
        for name, character in cast.items()
    ]


def reference_messages(references: Iterable[Reference]) -> list[story_pb2.Reference]:
    """Returns references as they are sent."""
    return [
        story_pb2.Reference(picture=each.picture, mask=each.mask or b"", role=_ROLES[each.role]) for each in references
    ]


def frame_message(frame: Frame) -> story_pb2.Frame:
    """Returns `frame` as it is sent."""
    pose = frame.pose
    return story_pb2.Frame(
        prompt=frame.prompt,
        characters=frame.characters,
        seed=frame.seed,
        pose=None
        if pose is None
        else story_pb2.Pose(picture=pose.picture, strength=pose.strength, controlnet=pose.controlnet),
    )


def story_event(response: EventMessage) -> StoryEvent | None:
    """Returns the event in `response`, or None for a kind of event that this version does not know."""
    place = (response.story_id, response.sequence)
    match response.WhichOneof("event"):
        case "accepted":
            accepted = response.accepted
            settings = settings_from(accepted.settings)
            notes = tuple(accepted.reference_notes)
            return Accepted(*place, settings, accepted.queue_position, tuple(accepted.frame_seeds), notes)
        case "progress":
            progress = response.progress
            stage = _STAGES.get(progress.stage)
            return Progress(*place, stage, progress.step, progress.steps, progress.queue_position)
        case "preview":
            preview = response.preview
            return Preview(*place, preview.frame_index, preview.step, _picture(preview.image))
        case "frame":
            return frame_from(response.frame, *place)
        case "done":
            return done_from(response.done, *place)
        case _:
            return None


def frame_from(message: story_service_pb2.FrameResult, story_id: str, sequence: int) -> FrameDone:
    """Returns a finished frame."""
    return FrameDone(
        story_id,
        sequence,
        frame_index=message.frame_index,
        picture=_picture(message.image),
        seed=message.seed,
        prompt=message.prompt,
        reused=message.reused,
        finished_seconds=message.finished_seconds,
        safety_flag=message.safety_flag,
        missing_characters=tuple(message.missing_characters),
    )


def done_from(message: story_service_pb2.StoryDone, story_id: str, sequence: int) -> Done:
    """Returns the end of a story."""
    scores = {each.character: each.score for each in message.consistency}
    return Done(story_id, sequence, timings=_timings(message.timings), consistency=scores)


def story_from(message: story_pb2.Story) -> Story:
    """Returns a story as the server sent it; it is not checked against this package's rules."""
    cast = {character.name: _character_from(character) for character in message.characters}
    frames = tuple(
        Frame.model_construct(
            prompt=frame.prompt,
            characters=tuple(frame.characters),
            seed=frame.seed if frame.HasField("seed") else None,
            pose=_pose_from(frame.pose) if frame.HasField("pose") else None,
        )
        for frame in message.frames
    )
    return Story.model_construct(
        title=message.title,
        style=message.style,
        characters=cast,
        frames=frames,
        negative_prompt=message.negative_prompt,
        settings=settings_from(message.settings),
    )


def settings_from(message: story_pb2.Settings) -> Settings:
    """Returns settings as the server sent them; they are not checked against this package's ranges."""
    consistency = message.consistency
    return Settings.model_construct(
        model=message.model,
        steps=message.steps if message.HasField("steps") else None,
        guidance_scale=_shortest(message.guidance_scale) if message.HasField("guidance_scale") else None,
        solver=SOLVER_NAMES.get(message.solver),
        width=message.width if message.HasField("width") else None,
        height=message.height if message.HasField("height") else None,
        seed=message.seed if message.HasField("seed") else None,
        consistency=Consistency.model_construct(
            enabled=consistency.enabled if consistency.HasField("enabled") else None,
            adapter=consistency.adapter,
            method=consistency.method,
            rounds=_rounds_from(consistency.rounds) if consistency.HasField("rounds") else None,
            feature_injection=consistency.feature_injection if consistency.HasField("feature_injection") else None,
        ),
        preview_interval=message.preview_interval,
        identity_adapter=message.identity_adapter,
        loras={each.name: _shortest(each.weight) if each.HasField("weight") else 1.0 for each in message.loras},
        redenoising=_redenoising_from(message.redenoising) if message.HasField("redenoising") else None,
        freeu=_freeu_from(message.freeu) if message.HasField("freeu") else None,
    )


def _freeu_from(message: story_pb2.FreeU) -> FreeU:
    return FreeU.model_construct(
        enabled=message.enabled if message.HasField("enabled") else None,
        b1=_shortest(message.b1) if message.HasField("b1") else None,
        b2=_shortest(message.b2) if message.HasField("b2") else None,
        s1=_shortest(message.s1) if message.HasField("s1") else None,
        s2=_shortest(message.s2) if message.HasField("s2") else None,
    )


def _rounds_from(message: story_pb2.Rounds) -> Rounds:
    return Rounds.model_construct(
        count=message.count if message.HasField("count") else None,
        first_scale=_shortest(message.first_scale) if message.HasField("first_scale") else None,
        last_scale=_shortest(message.last_scale) if message.HasField("last_scale") else None,
    )


def _redenoising_from(message: story_pb2.Redenoising) -> Redenoising:
    return Redenoising.model_construct(
        enabled=message.enabled if message.HasField("enabled") else None,
        start=_shortest(message.start) if message.HasField("start") else None,
        mask_margin=message.mask_margin if message.HasField("mask_margin") else None,
        mask_growth=message.mask_growth if message.HasField("mask_growth") else None,
        retries=message.retries if message.HasField("retries") else None,
    )


def _identity_message(character: Character) -> story_pb2.IdentityOptions | None:
    if not character.has_identity_options:
        return None
    blend = character.blend
    return story_pb2.IdentityOptions(
        scale=character.identity_scale,
        keep=[_PARTS[part] for part in character.keep],
        blend=None if blend is None else story_pb2.IdentityBlend(character_id=blend.id, weight=blend.weight),
        region_prompt=character.region_prompt,
    )


def _character_from(message: story_pb2.Character) -> Character:
    identity, blend = message.identity, message.identity.blend
    given: dict[str, Any] = {
        "description": message.description,
        "id": message.character_id,
        "references": tuple(_reference_from(each) for each in message.references),
        "keep": tuple(PART_NAMES[part] for part in identity.keep if part in PART_NAMES),
        "region_prompt": identity.region_prompt,
    }
    given = {key: value for key, value in given.items() if value}
    if identity.HasField("scale"):
        given["identity_scale"] = _shortest(identity.scale)
    if identity.HasField("blend"):
        given["blend"] = Blend.model_construct(id=blend.character_id, weight=_shortest(blend.weight))
    return Character.model_construct(None, **given)


def _pose_from(message: story_pb2.Pose) -> Pose:
    strength = _shortest(message.strength) if message.HasField("strength") else 1.0
    return Pose.model_construct(picture=message.picture, strength=strength, controlnet=message.controlnet)


def _reference_from(message: story_pb2.Reference) -> Reference:
    role = Role.CLOTHES if message.role == story_pb2.REFERENCE_ROLE_CLOTHES else Role.CHARACTER
    return Reference.model_construct(picture=message.picture, mask=message.mask or None, role=role)


def settings_message(settings: Settings) -> story_pb2.Settings:
    """Returns settings as they are sent."""
    return story_pb2.Settings(
        model=settings.model,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        solver=_SOLVERS[settings.solver] if settings.solver else story_pb2.SOLVER_UNSPECIFIED,
        width=settings.width,
        height=settings.height,
        seed=settings.seed,
        consistency=story_pb2.Consistency(
            enabled=settings.consistency.enabled,
            adapter=settings.consistency.adapter,
            method=settings.consistency.method,
            rounds=_rounds_message(settings.consistency.rounds),
            feature_injection=settings.consistency.feature_injection,
        ),
        preview_interval=settings.preview_interval,
        identity_adapter=settings.identity_adapter,
        loras=[story_pb2.LoraWeight(name=name, weight=weight) for name, weight in settings.loras.items()],
        redenoising=_redenoising_message(settings.redenoising),
        freeu=_freeu_message(settings.freeu),
    )


def _rounds_message(rounds: Rounds | None) -> story_pb2.Rounds | None:
    if rounds is None:
        return None
    return story_pb2.Rounds(count=rounds.count, first_scale=rounds.first_scale, last_scale=rounds.last_scale)


def _freeu_message(freeu: FreeU | None) -> story_pb2.FreeU | None:
    if freeu is None:
        return None
    return story_pb2.FreeU(enabled=freeu.enabled, b1=freeu.b1, b2=freeu.b2, s1=freeu.s1, s2=freeu.s2)


def _redenoising_message(redenoising: Redenoising | None) -> story_pb2.Redenoising | None:
    if redenoising is None:
        return None
    return story_pb2.Redenoising(
        enabled=redenoising.enabled,
        start=redenoising.start,
        mask_margin=redenoising.mask_margin,
        mask_growth=redenoising.mask_growth,
        retries=redenoising.retries,
    )


def _shortest(value: float) -> float:
    # The wire holds a float32: 5.1 comes back as 5.099999904632568. Fewer digits mean the same if they give its bits.
    bits = struct.pack("<f", value)
    short = (float(f"{value:.{digits}g}") for digits in (7, 8))
    return next((number for number in short if struct.pack("<f", number) == bits), value)


def _picture(image: story_service_pb2.Image) -> Picture:
    return Picture(image.png, image.width, image.height)


def _timings(message: story_service_pb2.StoryTimings) -> Timings:
    return Timings(
        queued=message.queued_seconds,
        encode=message.encode_seconds,
        denoise=message.denoise_seconds,
        decode=message.decode_seconds,
        total=message.total_seconds,
    )
