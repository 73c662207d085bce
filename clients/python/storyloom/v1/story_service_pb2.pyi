import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from storyloom.v1 import story_pb2 as _story_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

class DisconnectPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISCONNECT_POLICY_UNSPECIFIED: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_FINISH: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_CANCEL: _ClassVar[DisconnectPolicy]

class StoryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORY_STATE_UNSPECIFIED: _ClassVar[StoryState]
    STORY_STATE_QUEUED: _ClassVar[StoryState]
    STORY_STATE_RUNNING: _ClassVar[StoryState]
    STORY_STATE_FINISHED: _ClassVar[StoryState]
    STORY_STATE_FAILED: _ClassVar[StoryState]
    STORY_STATE_CANCELLED: _ClassVar[StoryState]

class StoryStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORY_STAGE_UNSPECIFIED: _ClassVar[StoryStage]
    STORY_STAGE_QUEUED: _ClassVar[StoryStage]
    STORY_STAGE_ENCODING: _ClassVar[StoryStage]
    STORY_STAGE_DENOISING: _ClassVar[StoryStage]
    STORY_STAGE_DECODING: _ClassVar[StoryStage]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
DISCONNECT_POLICY_UNSPECIFIED: DisconnectPolicy
DISCONNECT_POLICY_FINISH: DisconnectPolicy
DISCONNECT_POLICY_CANCEL: DisconnectPolicy
STORY_STATE_UNSPECIFIED: StoryState
STORY_STATE_QUEUED: StoryState
STORY_STATE_RUNNING: StoryState
STORY_STATE_FINISHED: StoryState
STORY_STATE_FAILED: StoryState
STORY_STATE_CANCELLED: StoryState
STORY_STAGE_UNSPECIFIED: StoryStage
STORY_STAGE_QUEUED: StoryStage
STORY_STAGE_ENCODING: StoryStage
STORY_STAGE_DENOISING: StoryStage
STORY_STAGE_DECODING: StoryStage

class Scheduling(_message.Message):
    __slots__ = ("priority", "deadline")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    priority: Priority
    deadline: _duration_pb2.Duration
    def __init__(self, priority: _Optional[_Union[Priority, str]] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping[str, object]]] = ...) -> None: ...

class GenerateStoryRequest(_message.Message):
    __slots__ = ("story", "request_id", "scheduling", "on_disconnect")
    STORY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    story: _story_pb2.Story
    request_id: str
    scheduling: Scheduling
    on_disconnect: DisconnectPolicy
    def __init__(self, story: _Optional[_Union[_story_pb2.Story, _Mapping[str, object]]] = ..., request_id: _Optional[str] = ..., scheduling: _Optional[_Union[Scheduling, _Mapping[str, object]]] = ..., on_disconnect: _Optional[_Union[DisconnectPolicy, str]] = ...) -> None: ...

class CreateStoryRequest(_message.Message):
    __slots__ = ("story", "request_id", "scheduling")
    STORY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    story: _story_pb2.Story
    request_id: str
    scheduling: Scheduling
    def __init__(self, story: _Optional[_Union[_story_pb2.Story, _Mapping[str, object]]] = ..., request_id: _Optional[str] = ..., scheduling: _Optional[_Union[Scheduling, _Mapping[str, object]]] = ...) -> None: ...

class CreateStoryResponse(_message.Message):
    __slots__ = ("story",)
    STORY_FIELD_NUMBER: _ClassVar[int]
    story: StoryRecord
    def __init__(self, story: _Optional[_Union[StoryRecord, _Mapping[str, object]]] = ...) -> None: ...

class WatchStoryRequest(_message.Message):
    __slots__ = ("story_id", "after_sequence")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    after_sequence: int
    def __init__(self, story_id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class GetStoryRequest(_message.Message):
    __slots__ = ("story_id", "include_images")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    include_images: bool
    def __init__(self, story_id: _Optional[str] = ..., include_images: _Optional[bool] = ...) -> None: ...

class GetStoryResponse(_message.Message):
    __slots__ = ("story",)
    STORY_FIELD_NUMBER: _ClassVar[int]
    story: StoryRecord
    def __init__(self, story: _Optional[_Union[StoryRecord, _Mapping[str, object]]] = ...) -> None: ...

class ListStoriesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "state")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    state: StoryState
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[StoryState, str]] = ...) -> None: ...

class ListStoriesResponse(_message.Message):
    __slots__ = ("stories", "next_page_token")
    STORIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    stories: _containers.RepeatedCompositeFieldContainer[StoryRecord]
    next_page_token: str
    def __init__(self, stories: _Optional[_Iterable[_Union[StoryRecord, _Mapping[str, object]]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelStoryRequest(_message.Message):
    __slots__ = ("story_id",)
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    def __init__(self, story_id: _Optional[str] = ...) -> None: ...

class CancelStoryResponse(_message.Message):
    __slots__ = ("story",)
    STORY_FIELD_NUMBER: _ClassVar[int]
    story: StoryRecord
    def __init__(self, story: _Optional[_Union[StoryRecord, _Mapping[str, object]]] = ...) -> None: ...

class ExtendStoryRequest(_message.Message):
    __slots__ = ("story_id", "frames", "new_characters", "request_id", "scheduling")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    NEW_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    frames: _containers.RepeatedCompositeFieldContainer[_story_pb2.Frame]
    new_characters: _containers.RepeatedCompositeFieldContainer[_story_pb2.Character]
    request_id: str
    scheduling: Scheduling
    def __init__(self, story_id: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[_story_pb2.Frame, _Mapping[str, object]]]] = ..., new_characters: _Optional[_Iterable[_Union[_story_pb2.Character, _Mapping[str, object]]]] = ..., request_id: _Optional[str] = ..., scheduling: _Optional[_Union[Scheduling, _Mapping[str, object]]] = ...) -> None: ...

class ExtendStoryResponse(_message.Message):
    __slots__ = ("story",)
    STORY_FIELD_NUMBER: _ClassVar[int]
    story: StoryRecord
    def __init__(self, story: _Optional[_Union[StoryRecord, _Mapping[str, object]]] = ...) -> None: ...

class RedoFrameRequest(_message.Message):
    __slots__ = ("story_id", "frame_index", "frame", "seed", "request_id", "scheduling")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCHEDULING_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    frame_index: int
    frame: _story_pb2.Frame
    seed: int
    request_id: str
    scheduling: Scheduling
    def __init__(self, story_id: _Optional[str] = ..., frame_index: _Optional[int] = ..., frame: _Optional[_Union[_story_pb2.Frame, _Mapping[str, object]]] = ..., seed: _Optional[int] = ..., request_id: _Optional[str] = ..., scheduling: _Optional[_Union[Scheduling, _Mapping[str, object]]] = ...) -> None: ...

class RedoFrameResponse(_message.Message):
    __slots__ = ("story",)
    STORY_FIELD_NUMBER: _ClassVar[int]
    story: StoryRecord
    def __init__(self, story: _Optional[_Union[StoryRecord, _Mapping[str, object]]] = ...) -> None: ...

class StoryRecord(_message.Message):
    __slots__ = ("story_id", "state", "story", "frames", "create_time", "finish_time", "expire_time", "parent_story_id", "last_sequence", "failure", "done")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STORY_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    PARENT_STORY_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    state: StoryState
    story: _story_pb2.Story
    frames: _containers.RepeatedCompositeFieldContainer[FrameResult]
    create_time: _timestamp_pb2.Timestamp
    finish_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    parent_story_id: str
    last_sequence: int
    failure: StoryFailure
    done: StoryDone
    def __init__(self, story_id: _Optional[str] = ..., state: _Optional[_Union[StoryState, str]] = ..., story: _Optional[_Union[_story_pb2.Story, _Mapping[str, object]]] = ..., frames: _Optional[_Iterable[_Union[FrameResult, _Mapping[str, object]]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., parent_story_id: _Optional[str] = ..., last_sequence: _Optional[int] = ..., failure: _Optional[_Union[StoryFailure, _Mapping[str, object]]] = ..., done: _Optional[_Union[StoryDone, _Mapping[str, object]]] = ...) -> None: ...

class StoryFailure(_message.Message):
    __slots__ = ("code", "reason", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class WatchStoryResponse(_message.Message):
    __slots__ = ("story_id", "sequence", "accepted", "progress", "preview", "frame", "done")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    sequence: int
    accepted: StoryAccepted
    progress: StoryProgress
    preview: FramePreview
    frame: FrameResult
    done: StoryDone
    def __init__(self, story_id: _Optional[str] = ..., sequence: _Optional[int] = ..., accepted: _Optional[_Union[StoryAccepted, _Mapping[str, object]]] = ..., progress: _Optional[_Union[StoryProgress, _Mapping[str, object]]] = ..., preview: _Optional[_Union[FramePreview, _Mapping[str, object]]] = ..., frame: _Optional[_Union[FrameResult, _Mapping[str, object]]] = ..., done: _Optional[_Union[StoryDone, _Mapping[str, object]]] = ...) -> None: ...

class GenerateStoryResponse(_message.Message):
    __slots__ = ("story_id", "sequence", "accepted", "progress", "preview", "frame", "done")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    sequence: int
    accepted: StoryAccepted
    progress: StoryProgress
    preview: FramePreview
    frame: FrameResult
    done: StoryDone
    def __init__(self, story_id: _Optional[str] = ..., sequence: _Optional[int] = ..., accepted: _Optional[_Union[StoryAccepted, _Mapping[str, object]]] = ..., progress: _Optional[_Union[StoryProgress, _Mapping[str, object]]] = ..., preview: _Optional[_Union[FramePreview, _Mapping[str, object]]] = ..., frame: _Optional[_Union[FrameResult, _Mapping[str, object]]] = ..., done: _Optional[_Union[StoryDone, _Mapping[str, object]]] = ...) -> None: ...

class StoryAccepted(_message.Message):
    __slots__ = ("settings", "queue_position", "frame_seeds", "reference_notes")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    FRAME_SEEDS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_NOTES_FIELD_NUMBER: _ClassVar[int]
    settings: _story_pb2.Settings
    queue_position: int
    frame_seeds: _containers.RepeatedScalarFieldContainer[int]
    reference_notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, settings: _Optional[_Union[_story_pb2.Settings, _Mapping[str, object]]] = ..., queue_position: _Optional[int] = ..., frame_seeds: _Optional[_Iterable[int]] = ..., reference_notes: _Optional[_Iterable[str]] = ...) -> None: ...

class StoryProgress(_message.Message):
    __slots__ = ("stage", "step", "steps", "queue_position")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    stage: StoryStage
    step: int
    steps: int
    queue_position: int
    def __init__(self, stage: _Optional[_Union[StoryStage, str]] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., queue_position: _Optional[int] = ...) -> None: ...

class FramePreview(_message.Message):
    __slots__ = ("frame_index", "step", "image")
    FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    frame_index: int
    step: int
    image: Image
    def __init__(self, frame_index: _Optional[int] = ..., step: _Optional[int] = ..., image: _Optional[_Union[Image, _Mapping[str, object]]] = ...) -> None: ...

class FrameResult(_message.Message):
    __slots__ = ("frame_index", "image", "seed", "prompt", "reused", "finished_seconds", "safety_flag", "missing_characters")
    FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAFETY_FLAG_FIELD_NUMBER: _ClassVar[int]
    MISSING_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    frame_index: int
    image: Image
    seed: int
    prompt: str
    reused: bool
    finished_seconds: float
    safety_flag: str
    missing_characters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, frame_index: _Optional[int] = ..., image: _Optional[_Union[Image, _Mapping[str, object]]] = ..., seed: _Optional[int] = ..., prompt: _Optional[str] = ..., reused: _Optional[bool] = ..., finished_seconds: _Optional[float] = ..., safety_flag: _Optional[str] = ..., missing_characters: _Optional[_Iterable[str]] = ...) -> None: ...

class StoryDone(_message.Message):
    __slots__ = ("timings", "consistency")
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    timings: StoryTimings
    consistency: _containers.RepeatedCompositeFieldContainer[CharacterConsistency]
    def __init__(self, timings: _Optional[_Union[StoryTimings, _Mapping[str, object]]] = ..., consistency: _Optional[_Iterable[_Union[CharacterConsistency, _Mapping[str, object]]]] = ...) -> None: ...

class CharacterConsistency(_message.Message):
    __slots__ = ("character", "score")
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    character: str
    score: float
    def __init__(self, character: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class StoryTimings(_message.Message):
    __slots__ = ("queued_seconds", "encode_seconds", "denoise_seconds", "decode_seconds", "total_seconds")
    QUEUED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DENOISE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queued_seconds: float
    encode_seconds: float
    denoise_seconds: float
    decode_seconds: float
    total_seconds: float
    def __init__(self, queued_seconds: _Optional[float] = ..., encode_seconds: _Optional[float] = ..., denoise_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("png", "width", "height")
    PNG_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    png: bytes
    width: int
    height: int
    def __init__(self, png: _Optional[bytes] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...
