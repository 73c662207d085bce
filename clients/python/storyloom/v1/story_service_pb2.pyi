from storyloom.v1 import story_pb2 as _story_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StoryStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORY_STAGE_UNSPECIFIED: _ClassVar[StoryStage]
    STORY_STAGE_QUEUED: _ClassVar[StoryStage]
    STORY_STAGE_ENCODING: _ClassVar[StoryStage]
    STORY_STAGE_DENOISING: _ClassVar[StoryStage]
    STORY_STAGE_DECODING: _ClassVar[StoryStage]
STORY_STAGE_UNSPECIFIED: StoryStage
STORY_STAGE_QUEUED: StoryStage
STORY_STAGE_ENCODING: StoryStage
STORY_STAGE_DENOISING: StoryStage
STORY_STAGE_DECODING: StoryStage

class GenerateStoryRequest(_message.Message):
    __slots__ = ("story",)
    STORY_FIELD_NUMBER: _ClassVar[int]
    story: _story_pb2.Story
    def __init__(self, story: _Optional[_Union[_story_pb2.Story, _Mapping[str, object]]] = ...) -> None: ...

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
    __slots__ = ("settings", "queue_position", "frame_seeds")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    FRAME_SEEDS_FIELD_NUMBER: _ClassVar[int]
    settings: _story_pb2.Settings
    queue_position: int
    frame_seeds: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, settings: _Optional[_Union[_story_pb2.Settings, _Mapping[str, object]]] = ..., queue_position: _Optional[int] = ..., frame_seeds: _Optional[_Iterable[int]] = ...) -> None: ...

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
    __slots__ = ("frame_index", "image", "seed", "prompt")
    FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    frame_index: int
    image: Image
    seed: int
    prompt: str
    def __init__(self, frame_index: _Optional[int] = ..., image: _Optional[_Union[Image, _Mapping[str, object]]] = ..., seed: _Optional[int] = ..., prompt: _Optional[str] = ...) -> None: ...

class StoryDone(_message.Message):
    __slots__ = ("timings",)
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    timings: StoryTimings
    def __init__(self, timings: _Optional[_Union[StoryTimings, _Mapping[str, object]]] = ...) -> None: ...

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
