"""Between stories as they are stored and as clients see them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf import timestamp_pb2

from storyloom.v1 import story_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.poses import without_pictures
from storyloom_server.store import Story, StoryState
from storyloom_server.story_error import StoryError

if TYPE_CHECKING:
    from storyloom_server.accepted_story import AcceptedStory

_STATES = {
    StoryState.QUEUED: pb.STORY_STATE_QUEUED,
    StoryState.RUNNING: pb.STORY_STATE_RUNNING,
    StoryState.FINISHED: pb.STORY_STATE_FINISHED,
    StoryState.FAILED: pb.STORY_STATE_FAILED,
    StoryState.CANCELLED: pb.STORY_STATE_CANCELLED,
}


def stored_request(story: AcceptedStory) -> bytes:
    """What is stored of an accepted story: a record with the complete story, and what is known of its frames."""
    frames = [
        pb.FrameResult(frame_index=index, reused=index in story.reused, safety_flag=story.prompt_flags.get(index, ""))
        for index in sorted(story.reused | story.prompt_flags.keys())
    ]
    return pb.StoryRecord(story=story.plan.story, frames=frames).SerializeToString()


class StoredRequest(NamedTuple):
    """The complete story; ``reused`` and ``prompt_flags`` as ``AcceptedStory`` has them."""

    story: story_pb2.Story
    reused: frozenset[int]
    prompt_flags: Mapping[int, str]


def read_request(stored: bytes) -> StoredRequest:
    """The inverse of ``stored_request``."""
    record = pb.StoryRecord.FromString(stored)
    return StoredRequest(
        record.story,
        frozenset(frame.frame_index for frame in record.frames if frame.reused),
        {frame.frame_index: frame.safety_flag for frame in record.frames if frame.safety_flag},
    )


def public_record(
    story: Story, request: bytes, events: Iterable[pb.GenerateStoryResponse], keep_seconds: float
) -> pb.StoryRecord:
    """A story as clients see it.

    Args:
        story: its row.
        request: what ``stored_request`` made.
        events: those that are stored; frames and the result are taken from them.
        keep_seconds: how long ended stories are kept; infinite for ever.
    """
    record = pb.StoryRecord(
        story_id=story.id,
        state=_STATES[story.state],
        story=without_pictures(read_request(request).story),
        create_time=_timestamp(story.created_at),
        finish_time=_timestamp(story.finished_at),
        expire_time=_timestamp(_expiry(story, keep_seconds)),
        parent_story_id=story.parent_id or "",
        failure=_failure(story),
    )
    for event in events:
        record.last_sequence = max(record.last_sequence, event.sequence)
        if event.HasField("frame"):
            record.frames.append(event.frame)
        elif event.HasField("done"):
            record.done.CopyFrom(event.done)
    record.frames.sort(key=lambda frame: frame.frame_index)
    return record


def _expiry(story: Story, keep_seconds: float) -> float | None:
    if story.finished_at is None or math.isinf(keep_seconds):
        return story.expires_at
    return story.expires_at or story.finished_at + keep_seconds


def _failure(story: Story) -> pb.StoryFailure | None:
    if story.error is None or story.state is not StoryState.FAILED:
        return None
    error = StoryError.from_bytes(story.error)
    return pb.StoryFailure(code=error.code.value[0], reason=error.reason, message=error.message)


def _timestamp(seconds: float | None) -> timestamp_pb2.Timestamp | None:
    if seconds is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
