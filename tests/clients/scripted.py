"""A real gRPC server whose stories follow a script, so that a test decides what a client meets."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from storyloom.v1 import (
    character_service_pb2,
    character_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    story_pb2,
    story_service_pb2,
    story_service_pb2_grpc,
)
from tests.clients.scripts import Refusal, Request, Response, Script, refusing, whole_story


class ScriptedServer(
    story_service_pb2_grpc.StoryServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
    character_service_pb2_grpc.CharacterServiceServicer,
):
    """Serves `script` to every story until it is replaced; keeps the records of stories and characters.

    :ivar watch_script: what a call that watches a story gets; None: the events of the recorded story.
    :ivar refusals: by method, what the next calls of it end with.
    :ivar requests: every request to generate that came in.
    :ivar calls: every other request, with its method.
    :ivar cancelled: set when a client ended the call of a story that never gets on.
    :ivar metadata: of the last call.
    :ivar stories: records by id.
    :ivar page_size: records on a page of a list.
    :ivar reference_notes: what is noted of each character's references.
    :ivar max_request_bytes: what the models say of the server.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.script: Script = whole_story
        self.watch_script: Script | None = None
        self.refusals: dict[str, list[Refusal]] = {}
        self.requests: list[Request] = []
        self.calls: list[tuple[str, Any]] = []
        self.metadata: dict[str, str | bytes] = {}
        self.cancelled = threading.Event()
        self.stories: dict[str, story_service_pb2.StoryRecord] = {}
        self.characters: dict[str, character_service_pb2.CharacterRecord] = {}
        self.reference_notes: list[str] = []
        self.max_request_bytes = 0
        self.page_size = 2
        self._health = health.HealthServicer()
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        story_service_pb2_grpc.add_StoryServiceServicer_to_server(self, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        character_service_pb2_grpc.add_CharacterServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        address = f"localhost:{port}"
        self.port = (
            self._server.add_secure_port(address, credentials)
            if credentials
            else self._server.add_insecure_port(address)
        )
        self.address = f"localhost:{self.port}"
        self.set_ready(True)
        self._server.start()

    def set_ready(self, ready: bool) -> None:
        """Says on the health service whether stories are taken; the server itself stays alive."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set("", serving)
        self._health.set("storyloom.v1.StoryService", serving if ready else not_serving)

    def go_on_with(self, request: Request) -> None:
        """Has calls that watch a story get the events of the one that `request` made."""
        self.watch_script = lambda watch, context: (
            event for event in whole_story(request, context) if event.sequence > watch.after_sequence
        )

    def request_of(self, story_id: str) -> Request:
        """Returns the request that would make a recorded story."""
        return Request(story=self.stories[story_id].story)

    def cancels(self) -> list[str]:
        """Returns the ids of the stories that clients asked to cancel."""
        return [request.story_id for method, request in self.calls if method == "CancelStory"]

    def _called(self, method: str, request: Any, context: Any) -> None:
        self.calls.append((method, request))
        self.metadata = dict(context.invocation_metadata())
        if self.refusals.get(method):
            self.refusals[method].pop(0)(context)

    def _story(self, story_id: str, context: Any) -> story_service_pb2.StoryRecord:
        if story_id not in self.stories:
            missing = error_details_pb2.ResourceInfo(resource_type="storyloom.dev/Story", resource_name=story_id)
            info = error_details_pb2.ErrorInfo(reason="STORY_NOT_FOUND", domain="storyloom.dev")
            refusing(grpc.StatusCode.NOT_FOUND, f"there is no story {story_id}", info, missing)(context)
        return self.stories[story_id]

    def _record(self, story: story_pb2.Story, parent: str = "") -> story_service_pb2.StoryRecord:
        story_id = f"story-{len(self.stories) + 1}"
        record = story_service_pb2.StoryRecord(
            story_id=story_id, story=story, state=story_service_pb2.STORY_STATE_QUEUED, parent_story_id=parent
        )
        record.create_time.FromSeconds(1_700_000_000 + len(self.stories))
        self.stories[story_id] = record
        return record

    def finish(self, story_id: str) -> None:
        """Makes a recorded story a finished one."""
        record = self.stories[story_id]
        record.state = story_service_pb2.STORY_STATE_FINISHED
        for event in whole_story(self.request_of(story_id), None):
            record.last_sequence = event.sequence
            if event.WhichOneof("event") == "frame":
                record.frames.append(event.frame)
            if event.WhichOneof("event") == "done":
                record.done.CopyFrom(event.done)
        record.frames.sort(key=lambda frame: frame.frame_index)
        record.finish_time.FromSeconds(1_700_000_100)
        record.expire_time.FromSeconds(1_700_100_000)

    def GenerateStory(self, request: Request, context: Any) -> Iterator[Response]:  # noqa: N802
        """Follows the script."""
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        yield from self.script(request, context)

    def WatchStory(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        """Sends the events of the story after the sequence number."""
        self._called("WatchStory", request, context)
        if self.watch_script is not None:
            events = self.watch_script(request, context)
        else:
            record = self._story(request.story_id, context)
            told = whole_story(Request(story=record.story), context)
            events = (event for event in told if event.sequence > request.after_sequence)
        for event in events:
            again = story_service_pb2.WatchStoryResponse.FromString(event.SerializeToString())
            again.story_id = request.story_id
            yield again

    def CreateStory(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Records the story."""
        self._called("CreateStory", request, context)
        return story_service_pb2.CreateStoryResponse(story=self._record(request.story))

    def GetStory(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns the record, with pictures if they are asked for."""
        self._called("GetStory", request, context)
        record = story_service_pb2.StoryRecord()
        record.CopyFrom(self._story(request.story_id, context))
        for frame in record.frames:
            if not request.include_images:
                frame.ClearField("image")
        return story_service_pb2.GetStoryResponse(story=record)

    def ListStories(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns a page of the records, newest first."""
        self._called("ListStories", request, context)
        newest = [story for story in reversed(self.stories.values()) if request.state in (0, story.state)]
        start = int(request.page_token or 0)
        end = start + self.page_size
        page = str(end) if end < len(newest) else ""
        return story_service_pb2.ListStoriesResponse(stories=newest[start:end], next_page_token=page)

    def CancelStory(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Marks the record, if there is one."""
        self._called("CancelStory", request, context)
        record = self.stories.get(request.story_id, story_service_pb2.StoryRecord(story_id=request.story_id))
        if record.state != story_service_pb2.STORY_STATE_FINISHED:
            record.state = story_service_pb2.STORY_STATE_CANCELLED
        return story_service_pb2.CancelStoryResponse(story=record)

    def ExtendStory(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Records the longer story."""
        self._called("ExtendStory", request, context)
        story = story_pb2.Story()
        story.CopyFrom(self._story(request.story_id, context).story)
        story.characters.extend(request.new_characters)
        story.frames.extend(request.frames)
        return story_service_pb2.ExtendStoryResponse(story=self._record(story, request.story_id))

    def RedoFrame(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Records the changed story."""
        self._called("RedoFrame", request, context)
        story = story_pb2.Story()
        story.CopyFrom(self._story(request.story_id, context).story)
        frame = story.frames[request.frame_index]
        if request.HasField("frame"):
            frame.CopyFrom(request.frame)
        if request.HasField("seed"):
            frame.seed = request.seed
        return story_service_pb2.RedoFrameResponse(story=self._record(story, request.story_id))

    def CreateCharacter(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Records the character."""
        self._called("CreateCharacter", request, context)
        record = character_service_pb2.CharacterRecord(
            character_id=f"character-{len(self.characters) + 1}",
            name=request.name,
            description=request.description,
            references=len(request.references) + len(request.reference_pictures),
            reference_notes=self.reference_notes,
        )
        record.create_time.FromSeconds(1_700_000_000)
        self.characters[record.character_id] = record
        return character_service_pb2.CreateCharacterResponse(character=record)

    def DiscoverCharacter(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Records a character that was found in candidates."""
        self._called("DiscoverCharacter", request, context)
        record = character_service_pb2.CharacterRecord(
            character_id=f"character-{len(self.characters) + 1}",
            name=request.name,
            description=request.description,
            references=1,
            reference_notes=["found in 16 candidates"],
            references_encoded=True,
        )
        self.characters[record.character_id] = record
        loops = [
            character_service_pb2.DiscoveryEvidence(story_id=f"loop-{loop}", compared=[0, 1, 3], kept=[1, 3], nearest=3)
            for loop in range(max(request.loops, 1))
        ]
        return character_service_pb2.DiscoverCharacterResponse(
            character=record, evidence=loops[-1], earlier_loops=loops[:-1]
        )

    def GetCharacter(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns the record."""
        self._called("GetCharacter", request, context)
        if request.character_id not in self.characters:
            refusing(grpc.StatusCode.NOT_FOUND, f"there is no character {request.character_id}")(context)
        return character_service_pb2.GetCharacterResponse(character=self.characters[request.character_id])

    def ListCharacters(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns a page of the records, newest first."""
        self._called("ListCharacters", request, context)
        newest = list(reversed(self.characters.values()))
        start = int(request.page_token or 0)
        end = start + self.page_size
        page = str(end) if end < len(newest) else ""
        return character_service_pb2.ListCharactersResponse(characters=newest[start:end], next_page_token=page)

    def DeleteCharacter(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Forgets the character."""
        self._called("DeleteCharacter", request, context)
        del self.characters[request.character_id]
        return character_service_pb2.DeleteCharacterResponse()

    def ListModels(  # noqa: N802
        self, request: model_service_pb2.ListModelsRequest, context: Any
    ) -> model_service_pb2.ListModelsResponse:
        """Lists one model."""
        self._called("ListModels", request, context)
        return model_service_pb2.ListModelsResponse(models=[_model("mini", is_default=True)])

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Describes any model."""
        self._called("GetModel", request, context)
        model = _model(request.name or "mini")
        model.limits.max_request_bytes = self.max_request_bytes
        return model_service_pb2.GetModelResponse(model=model)

    def LoadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Loads any model."""
        self._called("LoadModel", request, context)
        return model_service_pb2.LoadModelResponse(model=_model(request.name), seconds=1.5)

    def UnloadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Unloads any model."""
        self._called("UnloadModel", request, context)
        return model_service_pb2.UnloadModelResponse()

    def WarmModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Warms any model."""
        self._called("WarmModel", request, context)
        return model_service_pb2.WarmModelResponse(seconds=2.5)

    def stop(self) -> None:
        """Stops at once."""
        self._server.stop(None).wait()


def _model(name: str, *, is_default: bool = False) -> model_service_pb2.Model:
    model = model_service_pb2.Model(name=name, description="small", is_default=is_default, adapters=["amsa-mask"])
    model.sizes.add(width=128, height=128)
    model.defaults.CopyFrom(story_pb2.Settings(steps=25, guidance_scale=5, solver=story_pb2.SOLVER_DDIM))
    model.limits.CopyFrom(
        model_service_pb2.Limits(max_frames=16, max_characters=4, max_steps=100, max_prompt_tokens=77)
    )
    model.identity_adapters.add(name="storynizor", keeps=[story_pb2.IDENTITY_PART_FACE, 99])  # type: ignore[list-item]
    model.loras.extend(["ink", "wash"])
    model.methods.extend(["storynizor", "consistory"])
    model.controlnets.add(name="openpose", kind=story_pb2.CONTROL_KIND_POSE)
    model.controlnets.add(name="later", kind=99)  # type: ignore[arg-type]
    model.discovery.settings.solver = story_pb2.SOLVER_EULER
    model.discovery.negative_prompt = "a drawing"
    model.solvers.extend([story_pb2.SOLVER_DDIM, story_pb2.SOLVER_EULER, 99])  # type: ignore[list-item]
    return model


class BreakingStory:
    """A story whose stream breaks: each call sends as many events as the next of `breaks` says, then ends with `code`.

    :param overlap: events that a resumed call sends once more.
    :ivar watched: sequence numbers that resumed calls asked for.
    """

    def __init__(self, server: ScriptedServer, breaks: Sequence[int], code: grpc.StatusCode, overlap: int = 0) -> None:
        self._breaks = list(breaks)
        self._code = code
        self._overlap = overlap
        self._events: list[Response] = []
        self.watched: list[int] = []
        server.script, server.watch_script = self._generate, self._watch

    def break_again(self, breaks: Sequence[int]) -> None:
        """Breaks the next calls, as the first."""
        self._breaks = list(breaks)

    def _generate(self, request: Request, context: Any) -> Iterator[Response]:
        self._events = list(whole_story(request, context))
        yield from self._play(0, context)

    def _watch(self, request: story_service_pb2.WatchStoryRequest, context: Any) -> Iterator[Response]:
        self.watched.append(request.after_sequence)
        yield from self._play(max(0, request.after_sequence - self._overlap), context)

    def _play(self, after: int, context: Any) -> Iterator[Response]:
        count = self._breaks.pop(0) if self._breaks else len(self._events)
        yield from self._events[after : after + count]
        if after + count < len(self._events):
            context.abort(self._code, "broken")


def until_cancelled(server: ScriptedServer, events: int = 1) -> Script:
    """Returns the script of a story that stops getting on after some events, and tells `server.cancelled` when the
    client's call ends.
    """

    def script(request: Request, context: Any) -> Iterator[Response]:
        gone = threading.Event()

        # In a callback, because a call that ends at once never comes back to the lines after the yield.
        def leave() -> None:
            gone.set()
            server.cancelled.set()

        if not context.add_callback(leave):
            leave()
        yield from itertools.islice(whole_story(request, context), events)
        gone.wait(20)

    return script
