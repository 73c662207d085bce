"""Between this package's types and the messages of the wire contract; nothing else reads or writes messages."""

from __future__ import annotations

import struct

from storyloom._events import (
    Accepted,
    Done,
    FrameDone,
    Limits,
    ModelInfo,
    Picture,
    Preview,
    Progress,
    Stage,
    StoryEvent,
    Timings,
)
from storyloom._story import Consistency, Settings, Solver, Story
from storyloom.v1 import model_service_pb2, story_pb2, story_service_pb2

_SOLVERS = {
    Solver.DDIM: story_pb2.SOLVER_DDIM,
    Solver.EULER: story_pb2.SOLVER_EULER,
    Solver.UNIPC: story_pb2.SOLVER_UNIPC,
}
_SOLVER_NAMES = {int(number): solver for solver, number in _SOLVERS.items()}
_STAGES: dict[int, Stage] = {
    story_service_pb2.STORY_STAGE_QUEUED: Stage.QUEUED,
    story_service_pb2.STORY_STAGE_ENCODING: Stage.ENCODING,
    story_service_pb2.STORY_STAGE_DENOISING: Stage.DENOISING,
    story_service_pb2.STORY_STAGE_DECODING: Stage.DECODING,
}


def story_request(story: Story) -> story_service_pb2.GenerateStoryRequest:
    """Returns the request that generates `story`."""
    message = story_pb2.Story(
        title=story.title,
        style=story.style,
        negative_prompt=story.negative_prompt,
        settings=_settings_message(story.settings),
    )
    for name, character in story.characters.items():
        message.characters.add(name=name, description=character.description)
    for frame in story.frames:
        message.frames.add(prompt=frame.prompt, characters=frame.characters, seed=frame.seed)
    return story_service_pb2.GenerateStoryRequest(story=message)


def story_event(response: story_service_pb2.GenerateStoryResponse) -> StoryEvent | None:
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
            frame = response.frame
            return FrameDone(*place, frame.frame_index, _picture(frame.image), frame.seed, frame.prompt)
        case "done":
            return Done(*place, _timings(response.done.timings))
        case _:
            return None


def models_from(response: model_service_pb2.ListModelsResponse) -> tuple[ModelInfo, ...]:
    """Returns the models in `response`, in the server's order."""
    return tuple(_model(model) for model in response.models)


def settings_from(message: story_pb2.Settings) -> Settings:
    """Returns settings as the server sent them; they are not checked against this package's ranges."""
    consistency = message.consistency
    return Settings.model_construct(
        model=message.model,
        steps=message.steps if message.HasField("steps") else None,
        guidance_scale=_shortest(message.guidance_scale) if message.HasField("guidance_scale") else None,
        solver=_SOLVER_NAMES.get(message.solver),
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


def _model(model: model_service_pb2.Model) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        description=model.description,
        is_default=model.is_default,
        sizes=tuple((size.width, size.height) for size in model.sizes),
        defaults=settings_from(model.defaults),
        limits=Limits(
            max_frames=model.limits.max_frames,
            max_characters=model.limits.max_characters,
            max_steps=model.limits.max_steps,
            max_prompt_tokens=model.limits.max_prompt_tokens,
        ),
        solvers=tuple(_SOLVER_NAMES[solver] for solver in model.solvers if solver in _SOLVER_NAMES),
        adapters=tuple(model.adapters),
    )
