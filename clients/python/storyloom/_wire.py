"""Between stories and their events and the messages of the wire contract; see `_wire_records` for the rest."""

from __future__ import annotations

import struct
from collections.abc import Mapping

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
from storyloom._story import Character, Consistency, Frame, Settings, Solver, Story
from storyloom.v1 import story_pb2, story_service_pb2

EventMessage = story_service_pb2.GenerateStoryResponse | story_service_pb2.WatchStoryResponse
_SOLVERS = {
    Solver.DDIM: story_pb2.SOLVER_DDIM,
    Solver.EULER: story_pb2.SOLVER_EULER,
    Solver.UNIPC: story_pb2.SOLVER_UNIPC,
}
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
        settings=_settings_message(story.settings),
        characters=character_messages(story.characters),
        frames=[frame_message(frame) for frame in story.frames],
    )


def character_messages(cast: Mapping[str, Character]) -> list[story_pb2.Character]:
    """Returns the characters as they are sent."""
    return [
        story_pb2.Character(name=name, description=character.description, character_id=character.id)
        for name, character in cast.items()
    ]


def frame_message(frame: Frame) -> story_pb2.Frame:
    """Returns `frame` as it is sent."""
    return story_pb2.Frame(prompt=frame.prompt, characters=frame.characters, seed=frame.seed)


def story_event(response: EventMessage) -> StoryEvent | None:
    """Returns the event in `response`, or None for a kind of event that this version does not know."""
    place = (response.story_id, response.sequence)
    match response.WhichOneof("event"):
        case "accepted":
            accepted = response.accepted
            settings = settings_from(accepted.settings)
            return Accepted(*place, settings, accepted.queue_position, tuple(accepted.frame_seeds))
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
    )


def done_from(message: story_service_pb2.StoryDone, story_id: str, sequence: int) -> Done:
    """Returns the end of a story."""
    scores = {each.character: each.score for each in message.consistency}
    return Done(story_id, sequence, timings=_timings(message.timings), consistency=scores)


def story_from(message: story_pb2.Story) -> Story:
    """Returns a story as the server sent it; it is not checked against this package's rules."""
    cast = {}
    for character in message.characters:
        given = {"description": character.description, "id": character.character_id}
        cast[character.name] = Character.model_construct(None, **{key: text for key, text in given.items() if text})
    frames = tuple(
        Frame.model_construct(
            prompt=frame.prompt,
            characters=tuple(frame.characters),
            seed=frame.seed if frame.HasField("seed") else None,
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
            enabled=consistency.enabled if consistency.HasField("enabled") else None, adapter=consistency.adapter
        ),
        preview_interval=message.preview_interval,
    )


def _settings_message(settings: Settings) -> story_pb2.Settings:
    return story_pb2.Settings(
        model=settings.model,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        solver=_SOLVERS[settings.solver] if settings.solver else story_pb2.SOLVER_UNSPECIFIED,
        width=settings.width,
        height=settings.height,
        seed=settings.seed,
        consistency=story_pb2.Consistency(enabled=settings.consistency.enabled, adapter=settings.consistency.adapter),
        preview_interval=settings.preview_interval,
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
