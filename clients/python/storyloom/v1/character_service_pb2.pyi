import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from storyloom.v1 import story_pb2 as _story_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CharacterRecord(_message.Message):
    __slots__ = ("character_id", "name", "description", "references", "create_time", "reference_notes", "references_encoded")
    CHARACTER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_NOTES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_ENCODED_FIELD_NUMBER: _ClassVar[int]
    character_id: str
    name: str
    description: str
    references: int
    create_time: _timestamp_pb2.Timestamp
    reference_notes: _containers.RepeatedScalarFieldContainer[str]
    references_encoded: bool
    def __init__(self, character_id: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., references: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, object]]] = ..., reference_notes: _Optional[_Iterable[str]] = ..., references_encoded: _Optional[bool] = ...) -> None: ...

class CreateCharacterRequest(_message.Message):
    __slots__ = ("name", "description", "references", "reference_pictures")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_PICTURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    references: _containers.RepeatedScalarFieldContainer[bytes]
    reference_pictures: _containers.RepeatedCompositeFieldContainer[_story_pb2.Reference]
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., references: _Optional[_Iterable[bytes]] = ..., reference_pictures: _Optional[_Iterable[_Union[_story_pb2.Reference, _Mapping[str, object]]]] = ...) -> None: ...

class CreateCharacterResponse(_message.Message):
    __slots__ = ("character",)
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    character: CharacterRecord
    def __init__(self, character: _Optional[_Union[CharacterRecord, _Mapping[str, object]]] = ...) -> None: ...

class GetCharacterRequest(_message.Message):
    __slots__ = ("character_id",)
    CHARACTER_ID_FIELD_NUMBER: _ClassVar[int]
    character_id: str
    def __init__(self, character_id: _Optional[str] = ...) -> None: ...

class GetCharacterResponse(_message.Message):
    __slots__ = ("character",)
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    character: CharacterRecord
    def __init__(self, character: _Optional[_Union[CharacterRecord, _Mapping[str, object]]] = ...) -> None: ...

class ListCharactersRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCharactersResponse(_message.Message):
    __slots__ = ("characters", "next_page_token")
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    characters: _containers.RepeatedCompositeFieldContainer[CharacterRecord]
    next_page_token: str
    def __init__(self, characters: _Optional[_Iterable[_Union[CharacterRecord, _Mapping[str, object]]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DiscoverCharacterRequest(_message.Message):
    __slots__ = ("name", "description", "style", "candidates", "rounds", "seed", "model", "request_id", "loops", "negative_prompt", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STYLE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LOOPS_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    style: str
    candidates: int
    rounds: int
    seed: int
    model: str
    request_id: str
    loops: int
    negative_prompt: str
    settings: _story_pb2.Settings
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., style: _Optional[str] = ..., candidates: _Optional[int] = ..., rounds: _Optional[int] = ..., seed: _Optional[int] = ..., model: _Optional[str] = ..., request_id: _Optional[str] = ..., loops: _Optional[int] = ..., negative_prompt: _Optional[str] = ..., settings: _Optional[_Union[_story_pb2.Settings, _Mapping[str, object]]] = ...) -> None: ...

class DiscoverCharacterResponse(_message.Message):
    __slots__ = ("character", "evidence", "earlier_loops")
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    EARLIER_LOOPS_FIELD_NUMBER: _ClassVar[int]
    character: CharacterRecord
    evidence: DiscoveryEvidence
    earlier_loops: _containers.RepeatedCompositeFieldContainer[DiscoveryEvidence]
    def __init__(self, character: _Optional[_Union[CharacterRecord, _Mapping[str, object]]] = ..., evidence: _Optional[_Union[DiscoveryEvidence, _Mapping[str, object]]] = ..., earlier_loops: _Optional[_Iterable[_Union[DiscoveryEvidence, _Mapping[str, object]]]] = ...) -> None: ...

class DiscoveryEvidence(_message.Message):
    __slots__ = ("story_id", "compared", "kept", "nearest", "rounds")
    STORY_ID_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    story_id: str
    compared: _containers.RepeatedScalarFieldContainer[int]
    kept: _containers.RepeatedScalarFieldContainer[int]
    nearest: int
    rounds: _containers.RepeatedCompositeFieldContainer[DiscoveryRound]
    def __init__(self, story_id: _Optional[str] = ..., compared: _Optional[_Iterable[int]] = ..., kept: _Optional[_Iterable[int]] = ..., nearest: _Optional[int] = ..., rounds: _Optional[_Iterable[_Union[DiscoveryRound, _Mapping[str, object]]]] = ...) -> None: ...

class DiscoveryRound(_message.Message):
    __slots__ = ("frames", "errors")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, frames: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[float]] = ...) -> None: ...

class DeleteCharacterRequest(_message.Message):
    __slots__ = ("character_id",)
    CHARACTER_ID_FIELD_NUMBER: _ClassVar[int]
    character_id: str
    def __init__(self, character_id: _Optional[str] = ...) -> None: ...

class DeleteCharacterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
