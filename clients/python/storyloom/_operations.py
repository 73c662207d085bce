"""Every unary call: its method, its request, how its response is read, and whether it may be repeated."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from storyloom._events import ModelInfo
from storyloom._records import CharacterRecord, OnDisconnect, Priority, StoryRecord, StoryState
from storyloom._references import Reference
from storyloom._story import Character, Frame, Settings, Story
from storyloom._wire import character_messages, frame_message, reference_messages, settings_message, story_message
from storyloom._wire_records import (
    DISCONNECT_POLICIES,
    STATES,
    character_from,
    discovered_from,
    model_from,
    record_from,
    scheduling_message,
)
from storyloom.v1 import character_service_pb2 as characters_pb
from storyloom.v1 import model_service_pb2 as models_pb
from storyloom.v1 import story_service_pb2 as pb

T = TypeVar("T")
STORIES = "storyloom.v1.StoryService"
_CHARACTERS = "storyloom.v1.CharacterService"
_MODELS = "storyloom.v1.ModelService"
_SHORT_SECONDS = 10.0  # for calls that a healthy server answers at once
_UPLOAD_SECONDS = 60.0
PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """A call to be made.

    :ivar method: full name for gRPC.
    :ivar read: makes the result of the response.
    :ivar repeatable: the call does no harm if the server has acted on it before.
    :ivar seconds: timeout where the caller gives none; None for no limit.
    :ivar about_story: the request holds a story, or a part of one.
    """

    method: str
    request: Message
    response: type[Message]
    read: Callable[[Any], T]
    repeatable: bool = True
    seconds: float | None = _SHORT_SECONDS
    about_story: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller says about the making of a story, apart from the story.

    :ivar request_id: None: a new UUID.
    :ivar deadline: seconds.
    """

    request_id: str | None = None
    priority: Priority | None = None
    deadline: float | None = None

    def fields(self) -> dict[str, Any]:
        """Returns the fields of a request.

        :raises ValueError: when the deadline makes no sense.
        """
        return {
            "request_id": str(uuid.uuid4()) if self.request_id is None else self.request_id,
            "scheduling": scheduling_message(self.priority, self.deadline),
        }


def generate_request(story: Story, wish: Wish, on_disconnect: OnDisconnect | None) -> pb.GenerateStoryRequest:
    """Returns the request that generates `story`."""
    policy = DISCONNECT_POLICIES[OnDisconnect(on_disconnect)] if on_disconnect else None
    return pb.GenerateStoryRequest(story=story_message(story), on_disconnect=policy, **wish.fields())


def create_story(story: Story, wish: Wish) -> Operation[StoryRecord]:
    """Starts a story."""
    request = pb.CreateStoryRequest(story=story_message(story), **wish.fields())
    return _making("CreateStory", request, pb.CreateStoryResponse)


def extend_story(
    story_id: str, frames: Iterable[Frame | str], cast: Mapping[str, Character | str], wish: Wish
) -> Operation[StoryRecord]:
    """Puts frames behind those of a finished story."""
    request = pb.ExtendStoryRequest(
        story_id=story_id,
        frames=[frame_message(Frame.model_validate(frame)) for frame in frames],
        new_characters=character_messages({name: Character.model_validate(who) for name, who in cast.items()}),
        **wish.fields(),
    )
    return _making("ExtendStory", request, pb.ExtendStoryResponse)


def redo_frame(
    story_id: str, index: int, frame: Frame | str | None, seed: int | None, wish: Wish
) -> Operation[StoryRecord]:
    """Makes one frame of a finished story again."""
    request = pb.RedoFrameRequest(
        story_id=story_id,
        frame_index=index,
        frame=None if frame is None else frame_message(Frame.model_validate(frame)),
        seed=seed,
        **wish.fields(),
    )
    return _making("RedoFrame", request, pb.RedoFrameResponse)


def get_story(story_id: str, *, images: bool) -> Operation[StoryRecord]:
    """Reads a story."""
    request = pb.GetStoryRequest(story_id=story_id, include_images=images)
    seconds = _UPLOAD_SECONDS if images else _SHORT_SECONDS
    return Operation(f"/{STORIES}/GetStory", request, pb.GetStoryResponse, _story, seconds=seconds)


def cancel_story(story_id: str) -> Operation[StoryRecord]:
    """Cancels a story."""
    request = pb.CancelStoryRequest(story_id=story_id)
    return Operation(f"/{STORIES}/CancelStory", request, pb.CancelStoryResponse, _story)


def list_stories(state: StoryState | None, page: str) -> Operation[tuple[list[StoryRecord], str]]:
    """Reads one page of the stories; the result holds the token of the next page, empty after the last."""
    number = STATES[StoryState(state)] if state is not None else None
    request = pb.ListStoriesRequest(page_size=PAGE_SIZE, page_token=page, state=number)

    def read(response: pb.ListStoriesResponse) -> tuple[list[StoryRecord], str]:
        return [record_from(story) for story in response.stories], response.next_page_token

    return Operation(f"/{STORIES}/ListStories", request, pb.ListStoriesResponse, read)


def create_character(name: str, description: str, references: Iterable[Any]) -> Operation[CharacterRecord]:
    """Makes a character. It has no request id: the server must not be asked twice."""
    given = [Reference.model_validate(each) for each in references]
    request = characters_pb.CreateCharacterRequest(name=name, description=description)
    if all(each.is_plain for each in given):  # Servers that know no masks take these, too.
        request.references.extend(each.picture for each in given)
    else:
        request.reference_pictures.extend(reference_messages(given))
    response = characters_pb.CreateCharacterResponse
    method = f"/{_CHARACTERS}/CreateCharacter"
    return Operation(method, request, response, _character, repeatable=False, seconds=_UPLOAD_SECONDS)


def discover_character(
    name: str,
    description: str,
    style: str,
    candidates: int | None,
    rounds: int | None,
    seed: int | None,
    model: str,
    request_id: str | None,
    loops: int | None,
    negative_prompt: str | None,
    settings: Settings | Mapping[str, Any] | None,
) -> Operation[CharacterRecord]:
    """Finds a character. With its request id the server may be asked again."""
    request = characters_pb.DiscoverCharacterRequest(
        name=name,
        description=description,
        style=style,
        candidates=candidates or 0,
        rounds=rounds or 0,
        seed=seed,
        model=model,
        request_id=request_id or str(uuid.uuid4()),
        loops=loops or 0,
        negative_prompt=negative_prompt,
        settings=None if settings is None else settings_message(Settings.model_validate(settings)),
    )
    response = characters_pb.DiscoverCharacterResponse
    return Operation(f"/{_CHARACTERS}/DiscoverCharacter", request, response, discovered_from, seconds=None)


def get_character(character_id: str) -> Operation[CharacterRecord]:
    """Reads a character."""
    request = characters_pb.GetCharacterRequest(character_id=character_id)
    return Operation(f"/{_CHARACTERS}/GetCharacter", request, characters_pb.GetCharacterResponse, _character)


def list_characters(page: str) -> Operation[tuple[list[CharacterRecord], str]]:
    """Reads one page of the characters, as `list_stories`."""
    request = characters_pb.ListCharactersRequest(page_size=PAGE_SIZE, page_token=page)

    def read(response: characters_pb.ListCharactersResponse) -> tuple[list[CharacterRecord], str]:
        return [character_from(character) for character in response.characters], response.next_page_token

    return Operation(f"/{_CHARACTERS}/ListCharacters", request, characters_pb.ListCharactersResponse, read)


def delete_character(character_id: str) -> Operation[None]:
    """Deletes a character."""
    request = characters_pb.DeleteCharacterRequest(character_id=character_id)
    response = characters_pb.DeleteCharacterResponse
    return Operation(f"/{_CHARACTERS}/DeleteCharacter", request, response, lambda _: None, repeatable=False)


def list_models() -> Operation[tuple[ModelInfo, ...]]:
    """Reads what is served, in the server's order."""
    return Operation(
        f"/{_MODELS}/ListModels",
        models_pb.ListModelsRequest(),
        models_pb.ListModelsResponse,
        lambda response: tuple(model_from(model) for model in response.models),
    )


def get_model(name: str) -> Operation[ModelInfo]:
    """Reads what a model can do."""
    request = models_pb.GetModelRequest(name=name)
    return Operation(f"/{_MODELS}/GetModel", request, models_pb.GetModelResponse, lambda got: model_from(got.model))


def load_model(name: str) -> Operation[ModelInfo]:
    """Loads a model, which takes as long as it takes."""
    request = models_pb.LoadModelRequest(name=name)
    response = models_pb.LoadModelResponse
    return Operation(f"/{_MODELS}/LoadModel", request, response, lambda got: model_from(got.model), seconds=None)


def unload_model(name: str) -> Operation[None]:
    """Unloads a model, once the stories that use it are done."""
    request = models_pb.UnloadModelRequest(name=name)
    response = models_pb.UnloadModelResponse
    method = f"/{_MODELS}/UnloadModel"
    return Operation(method, request, response, lambda _: None, repeatable=False, seconds=None)


def warm_model(name: str) -> Operation[float]:
    """Takes a small story through a model."""
    request = models_pb.WarmModelRequest(name=name)
    response = models_pb.WarmModelResponse
    return Operation(f"/{_MODELS}/WarmModel", request, response, lambda got: float(got.seconds), seconds=None)


def check_health(service: str) -> Operation[bool]:
    """Asks whether `service` works; ``""`` is the server as a whole."""
    return Operation(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest(service=service),
        health_pb2.HealthCheckResponse,
        lambda response: bool(response.status == health_pb2.HealthCheckResponse.SERVING),
    )


def _making(method: str, request: Message, response: type[Message]) -> Operation[StoryRecord]:
    return Operation(f"/{STORIES}/{method}", request, response, _story, about_story=True)


def _story(response: Any) -> StoryRecord:
    return record_from(response.story)


def _character(response: Any) -> CharacterRecord:
    return character_from(response.character)
