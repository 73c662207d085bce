from storyloom.v1 import story_pb2 as _story_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping[str, object]]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model", "seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    seconds: float
    def __init__(self, model: _Optional[_Union[Model, _Mapping[str, object]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WarmModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WarmModelResponse(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping[str, object]]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "description", "is_default", "sizes", "defaults", "limits", "solvers", "adapters", "identity_adapters", "loras", "methods", "controlnets", "discovery", "character_finder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SOLVERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    CONTROLNETS_FIELD_NUMBER: _ClassVar[int]
    DISCOVERY_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_FINDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    is_default: bool
    sizes: _containers.RepeatedCompositeFieldContainer[ImageSize]
    defaults: _story_pb2.Settings
    limits: Limits
    solvers: _containers.RepeatedScalarFieldContainer[_story_pb2.Solver]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    identity_adapters: _containers.RepeatedCompositeFieldContainer[IdentityAdapter]
    loras: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    controlnets: _containers.RepeatedCompositeFieldContainer[ControlNet]
    discovery: Discovery
    character_finder: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., is_default: _Optional[bool] = ..., sizes: _Optional[_Iterable[_Union[ImageSize, _Mapping[str, object]]]] = ..., defaults: _Optional[_Union[_story_pb2.Settings, _Mapping[str, object]]] = ..., limits: _Optional[_Union[Limits, _Mapping[str, object]]] = ..., solvers: _Optional[_Iterable[_Union[_story_pb2.Solver, str]]] = ..., adapters: _Optional[_Iterable[str]] = ..., identity_adapters: _Optional[_Iterable[_Union[IdentityAdapter, _Mapping[str, object]]]] = ..., loras: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., controlnets: _Optional[_Iterable[_Union[ControlNet, _Mapping[str, object]]]] = ..., discovery: _Optional[_Union[Discovery, _Mapping[str, object]]] = ..., character_finder: _Optional[bool] = ...) -> None: ...

class Discovery(_message.Message):
    __slots__ = ("settings", "negative_prompt")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    settings: _story_pb2.Settings
    negative_prompt: str
    def __init__(self, settings: _Optional[_Union[_story_pb2.Settings, _Mapping[str, object]]] = ..., negative_prompt: _Optional[str] = ...) -> None: ...

class ControlNet(_message.Message):
    __slots__ = ("name", "kind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: _story_pb2.ControlKind
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[_story_pb2.ControlKind, str]] = ...) -> None: ...

class IdentityAdapter(_message.Message):
    __slots__ = ("name", "keeps")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    name: str
    keeps: _containers.RepeatedScalarFieldContainer[_story_pb2.IdentityPart]
    def __init__(self, name: _Optional[str] = ..., keeps: _Optional[_Iterable[_Union[_story_pb2.IdentityPart, str]]] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_frames", "max_characters", "max_steps", "max_prompt_tokens", "window_frames", "max_references", "max_request_bytes")
    MAX_FRAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FRAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_REFERENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_frames: int
    max_characters: int
    max_steps: int
    max_prompt_tokens: int
    window_frames: int
    max_references: int
    max_request_bytes: int
    def __init__(self, max_frames: _Optional[int] = ..., max_characters: _Optional[int] = ..., max_steps: _Optional[int] = ..., max_prompt_tokens: _Optional[int] = ..., window_frames: _Optional[int] = ..., max_references: _Optional[int] = ..., max_request_bytes: _Optional[int] = ...) -> None: ...
