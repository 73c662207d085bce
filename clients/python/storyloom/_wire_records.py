"""Between the records of stories, characters and models and the messages of the wire contract."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from storyloom._events import Limits, ModelInfo
from storyloom._records import (
    CharacterRecord,
    DiscoveryLoop,
    FailureRecord,
    OnDisconnect,
    Priority,
    StoryRecord,
    StoryState,
)
from storyloom._wire import CONTROL_KINDS, PART_NAMES, SOLVER_NAMES, done_from, frame_from, settings_from, story_from
from storyloom.v1 import character_service_pb2, model_service_pb2
from storyloom.v1 import story_service_pb2 as pb

STATES = {
    StoryState.QUEUED: pb.STORY_STATE_QUEUED,
    StoryState.RUNNING: pb.STORY_STATE_RUNNING,
    StoryState.FINISHED: pb.STORY_STATE_FINISHED,
    StoryState.FAILED: pb.STORY_STATE_FAILED,
    StoryState.CANCELLED: pb.STORY_STATE_CANCELLED,
}
_STATE_NAMES = {int(number): state for state, number in STATES.items()}
_PRIORITIES = {
    Priority.LOW: pb.PRIORITY_LOW,
    Priority.NORMAL: pb.PRIORITY_NORMAL,
    Priority.HIGH: pb.PRIORITY_HIGH,
}
DISCONNECT_POLICIES = {
    OnDisconnect.FINISH: pb.DISCONNECT_POLICY_FINISH,
    OnDisconnect.CANCEL: pb.DISCONNECT_POLICY_CANCEL,
}
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def scheduling_message(priority: Priority | None, deadline: float | None) -> pb.Scheduling | None:
    """Returns when a story is wanted; None where the caller says nothing.

    :param deadline: seconds.
    :raises ValueError: when the deadline is not positive and finite.
    """
    if priority is None and deadline is None:
        return None
    message = pb.Scheduling()
    if priority is not None:
        message.priority = _PRIORITIES[Priority(priority)]
    if deadline is not None:
        # The longest that a Duration holds is 10,000 years; a day less than that is still no deadline.
        if not 0 < deadline < 1e9:
            raise ValueError(f"the deadline must be a positive number of seconds, and not {deadline}")
        message.deadline.FromNanoseconds(max(1, round(deadline * 1e9)))
    return message


def record_from(message: pb.StoryRecord) -> StoryRecord:
    """Returns the record of a story."""
    failure = message.failure
    return StoryRecord(
        story_id=message.story_id,
        state=_STATE_NAMES.get(message.state),
        story=story_from(message.story),
        frames=tuple(frame_from(frame, message.story_id, 0) for frame in message.frames),
        created=_time(message.create_time) if message.HasField("create_time") else None,
        finished=_time(message.finish_time) if message.HasField("finish_time") else None,
        expires=_time(message.expire_time) if message.HasField("expire_time") else None,
        parent_id=message.parent_story_id,
        last_sequence=message.last_sequence,
        failure=FailureRecord(_CODES.get(failure.code, "UNKNOWN"), failure.reason, failure.message)
        if message.HasField("failure")
        else None,
        done=done_from(message.done, message.story_id, message.last_sequence) if message.HasField("done") else None,
    )


def character_from(message: character_service_pb2.CharacterRecord) -> CharacterRecord:
    """Returns the record of a character."""
    return CharacterRecord(
        character_id=message.character_id,
        name=message.name,
        description=message.description,
        references=message.references,
        created=_time(message.create_time) if message.HasField("create_time") else None,
        reference_notes=tuple(message.reference_notes),
        references_encoded=message.references_encoded,
    )


def discovered_from(message: character_service_pb2.DiscoverCharacterResponse) -> CharacterRecord:
    """Returns the record of a character that was found, with how."""
    last = (message.evidence,) if message.HasField("evidence") else ()
    loops = tuple(
        DiscoveryLoop(each.story_id, tuple(each.compared), tuple(each.kept), each.nearest)
        for each in (*message.earlier_loops, *last)
    )
    return replace(character_from(message.character), discovery=loops)


def model_from(model: model_service_pb2.Model) -> ModelInfo:
    """Returns what a model can do."""
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
            max_references=model.limits.max_references,
            max_request_bytes=model.limits.max_request_bytes,
        ),
        solvers=tuple(SOLVER_NAMES[solver] for solver in model.solvers if solver in SOLVER_NAMES),
        adapters=tuple(model.adapters),
        identity_adapters={
            adapter.name: tuple(PART_NAMES[part] for part in adapter.keeps if part in PART_NAMES)
            for adapter in model.identity_adapters
        },
        loras=tuple(model.loras),
        methods=tuple(model.methods),
        controlnets={each.name: CONTROL_KINDS.get(each.kind) for each in model.controlnets},
        discovery=settings_from(model.discovery.settings),
        discovery_negative_prompt=model.discovery.negative_prompt,
        character_finder=model.character_finder,
    )


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
