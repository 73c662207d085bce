from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Solver(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOLVER_UNSPECIFIED: _ClassVar[Solver]
    SOLVER_DDIM: _ClassVar[Solver]
    SOLVER_EULER: _ClassVar[Solver]
    SOLVER_UNIPC: _ClassVar[Solver]
SOLVER_UNSPECIFIED: Solver
SOLVER_DDIM: Solver
SOLVER_EULER: Solver
SOLVER_UNIPC: Solver

class Story(_message.Message):
    __slots__ = ("title", "characters", "frames", "style", "negative_prompt", "settings")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    title: str
    characters: _containers.RepeatedCompositeFieldContainer[Character]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    style: str
    negative_prompt: str
    settings: Settings
    def __init__(self, title: _Optional[str] = ..., characters: _Optional[_Iterable[_Union[Character, _Mapping[str, object]]]] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping[str, object]]]] = ..., style: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., settings: _Optional[_Union[Settings, _Mapping[str, object]]] = ...) -> None: ...

class Character(_message.Message):
    __slots__ = ("name", "description", "character_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    character_id: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., character_id: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("prompt", "characters", "seed")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    characters: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    def __init__(self, prompt: _Optional[str] = ..., characters: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ...) -> None: ...

class Consistency(_message.Message):
    __slots__ = ("enabled", "adapter")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    adapter: str
    def __init__(self, enabled: _Optional[bool] = ..., adapter: _Optional[str] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("model", "steps", "guidance_scale", "solver", "width", "height", "seed", "consistency", "preview_interval")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    steps: int
    guidance_scale: float
    solver: Solver
    width: int
    height: int
    seed: int
    consistency: Consistency
    preview_interval: int
    def __init__(self, model: _Optional[str] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., solver: _Optional[_Union[Solver, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., seed: _Optional[int] = ..., consistency: _Optional[_Union[Consistency, _Mapping[str, object]]] = ..., preview_interval: _Optional[int] = ...) -> None: ...
