from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReferenceRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFERENCE_ROLE_UNSPECIFIED: _ClassVar[ReferenceRole]
    REFERENCE_ROLE_CHARACTER: _ClassVar[ReferenceRole]
    REFERENCE_ROLE_CLOTHES: _ClassVar[ReferenceRole]

class IdentityPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IDENTITY_PART_UNSPECIFIED: _ClassVar[IdentityPart]
    IDENTITY_PART_FACE: _ClassVar[IdentityPart]
    IDENTITY_PART_HAIR: _ClassVar[IdentityPart]
    IDENTITY_PART_CLOTHES: _ClassVar[IdentityPart]
    IDENTITY_PART_BODY: _ClassVar[IdentityPart]

class ControlKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTROL_KIND_UNSPECIFIED: _ClassVar[ControlKind]
    CONTROL_KIND_POSE: _ClassVar[ControlKind]
    CONTROL_KIND_IDENTITYNET: _ClassVar[ControlKind]

class Solver(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOLVER_UNSPECIFIED: _ClassVar[Solver]
    SOLVER_DDIM: _ClassVar[Solver]
    SOLVER_EULER: _ClassVar[Solver]
    SOLVER_UNIPC: _ClassVar[Solver]
REFERENCE_ROLE_UNSPECIFIED: ReferenceRole
REFERENCE_ROLE_CHARACTER: ReferenceRole
REFERENCE_ROLE_CLOTHES: ReferenceRole
IDENTITY_PART_UNSPECIFIED: IdentityPart
IDENTITY_PART_FACE: IdentityPart
IDENTITY_PART_HAIR: IdentityPart
IDENTITY_PART_CLOTHES: IdentityPart
IDENTITY_PART_BODY: IdentityPart
CONTROL_KIND_UNSPECIFIED: ControlKind
CONTROL_KIND_POSE: ControlKind
CONTROL_KIND_IDENTITYNET: ControlKind
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
    __slots__ = ("name", "description", "character_id", "references", "identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    character_id: str
    references: _containers.RepeatedCompositeFieldContainer[Reference]
    identity: IdentityOptions
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., character_id: _Optional[str] = ..., references: _Optional[_Iterable[_Union[Reference, _Mapping[str, object]]]] = ..., identity: _Optional[_Union[IdentityOptions, _Mapping[str, object]]] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("picture", "mask", "role")
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    picture: bytes
    mask: bytes
    role: ReferenceRole
    def __init__(self, picture: _Optional[bytes] = ..., mask: _Optional[bytes] = ..., role: _Optional[_Union[ReferenceRole, str]] = ...) -> None: ...

class IdentityOptions(_message.Message):
    __slots__ = ("scale", "keep", "blend", "region_prompt")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    BLEND_FIELD_NUMBER: _ClassVar[int]
    REGION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    scale: float
    keep: _containers.RepeatedScalarFieldContainer[IdentityPart]
    blend: IdentityBlend
    region_prompt: str
    def __init__(self, scale: _Optional[float] = ..., keep: _Optional[_Iterable[_Union[IdentityPart, str]]] = ..., blend: _Optional[_Union[IdentityBlend, _Mapping[str, object]]] = ..., region_prompt: _Optional[str] = ...) -> None: ...

class IdentityBlend(_message.Message):
    __slots__ = ("character_id", "weight")
    CHARACTER_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    character_id: str
    weight: float
    def __init__(self, character_id: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("prompt", "characters", "seed", "pose")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    POSE_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    characters: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    pose: Pose
    def __init__(self, prompt: _Optional[str] = ..., characters: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., pose: _Optional[_Union[Pose, _Mapping[str, object]]] = ...) -> None: ...

class Pose(_message.Message):
    __slots__ = ("picture", "strength", "controlnet")
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_FIELD_NUMBER: _ClassVar[int]
    picture: bytes
    strength: float
    controlnet: str
    def __init__(self, picture: _Optional[bytes] = ..., strength: _Optional[float] = ..., controlnet: _Optional[str] = ...) -> None: ...

class Consistency(_message.Message):
    __slots__ = ("enabled", "adapter", "method", "rounds", "feature_injection")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_INJECTION_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    adapter: str
    method: str
    rounds: Rounds
    feature_injection: bool
    def __init__(self, enabled: _Optional[bool] = ..., adapter: _Optional[str] = ..., method: _Optional[str] = ..., rounds: _Optional[_Union[Rounds, _Mapping[str, object]]] = ..., feature_injection: _Optional[bool] = ...) -> None: ...

class Rounds(_message.Message):
    __slots__ = ("count", "first_scale", "last_scale")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_SCALE_FIELD_NUMBER: _ClassVar[int]
    LAST_SCALE_FIELD_NUMBER: _ClassVar[int]
    count: int
    first_scale: float
    last_scale: float
    def __init__(self, count: _Optional[int] = ..., first_scale: _Optional[float] = ..., last_scale: _Optional[float] = ...) -> None: ...

class FreeU(_message.Message):
    __slots__ = ("enabled", "b1", "b2", "s1", "s2")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    B1_FIELD_NUMBER: _ClassVar[int]
    B2_FIELD_NUMBER: _ClassVar[int]
    S1_FIELD_NUMBER: _ClassVar[int]
    S2_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    b1: float
    b2: float
    s1: float
    s2: float
    def __init__(self, enabled: _Optional[bool] = ..., b1: _Optional[float] = ..., b2: _Optional[float] = ..., s1: _Optional[float] = ..., s2: _Optional[float] = ...) -> None: ...

class Redenoising(_message.Message):
    __slots__ = ("enabled", "start", "mask_margin", "mask_growth", "retries")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    MASK_MARGIN_FIELD_NUMBER: _ClassVar[int]
    MASK_GROWTH_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    start: float
    mask_margin: int
    mask_growth: int
    retries: int
    def __init__(self, enabled: _Optional[bool] = ..., start: _Optional[float] = ..., mask_margin: _Optional[int] = ..., mask_growth: _Optional[int] = ..., retries: _Optional[int] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("model", "steps", "guidance_scale", "solver", "width", "height", "seed", "consistency", "preview_interval", "identity_adapter", "loras", "redenoising", "freeu")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    REDENOISING_FIELD_NUMBER: _ClassVar[int]
    FREEU_FIELD_NUMBER: _ClassVar[int]
    model: str
    steps: int
    guidance_scale: float
    solver: Solver
    width: int
    height: int
    seed: int
    consistency: Consistency
    preview_interval: int
    identity_adapter: str
    loras: _containers.RepeatedCompositeFieldContainer[LoraWeight]
    redenoising: Redenoising
    freeu: FreeU
    def __init__(self, model: _Optional[str] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., solver: _Optional[_Union[Solver, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., seed: _Optional[int] = ..., consistency: _Optional[_Union[Consistency, _Mapping[str, object]]] = ..., preview_interval: _Optional[int] = ..., identity_adapter: _Optional[str] = ..., loras: _Optional[_Iterable[_Union[LoraWeight, _Mapping[str, object]]]] = ..., redenoising: _Optional[_Union[Redenoising, _Mapping[str, object]]] = ..., freeu: _Optional[_Union[FreeU, _Mapping[str, object]]] = ...) -> None: ...

class LoraWeight(_message.Message):
    __slots__ = ("name", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...
