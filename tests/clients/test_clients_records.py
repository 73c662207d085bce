"""Stories that outlive their call, kept characters, model control: what is sent, and what comes back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from storyloom import (
    Character,
    CharacterRecord,
    DiscoveryLoop,
    Done,
    Frame,
    FrameDone,
    NotFound,
    Settings,
    Solver,
    Story,
    StoryEvent,
    StoryState,
)
from storyloom.v1 import story_pb2
from storyloom.v1 import story_service_pb2 as pb
from tests.clients.blocking import Connect
from tests.clients.scripted import ScriptedServer
from tests.clients.scripts import Request, png, whole_story

MIA, ANOTHER = png((200, 0, 0)), png((0, 200, 0))


def test_a_created_story_is_followed_later(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        record = client.create_story(story, request_id="mine", priority="low", deadline=60)
        assert (record.story_id, record.state, record.state.ended) == ("story-1", StoryState.QUEUED, False)
        assert record.story == story
        assert record.created == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        assert (record.finished, record.expires, record.done, record.failure) == (None, None, None, None)
        events: list[StoryEvent] = []
        result = client.wait(record.story_id, on_event=events.append)
        (_, sent), *_ = server.calls
    assert (sent.request_id, sent.scheduling.priority, sent.scheduling.deadline.seconds) == ("mine", 1, 60)
    assert [frame.getpixel((3, 3)) for frame in result.frames] == [(200, 30, 30), (30, 160, 60), (40, 60, 200)]
    assert result.story == story
    assert result.consistency == {"mia": 0.875, "tom": 0.875}
    assert isinstance(events[-1], Done)


def test_a_finished_story_comes_with_all_that_is_known(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        client.create_story(story)
        server.finish("story-1")
        record = client.get_story("story-1")
        assert record.state is StoryState.FINISHED
        assert record.state.ended
        assert [(frame.frame_index, frame.seed) for frame in record.frames] == [(0, 100), (1, 7), (2, 102)]
        assert [frame.picture.png for frame in record.frames] == [b"", b"", b""]
        assert record.frames[0].finished_seconds == 8.2
        assert record.done is not None
        assert record.done.consistency == {"mia": 0.875, "tom": 0.875}
        assert record.last_sequence == 17
        assert record.finished < record.expires
        with_pictures = client.get_story("story-1", images=True)
        assert with_pictures.frames[1].picture.open().getpixel((0, 0)) == (30, 160, 60)


def test_a_failed_story_says_why(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        client.create_story(story)
        server.stories["story-1"].state = pb.STORY_STATE_FAILED
        server.stories["story-1"].failure.CopyFrom(pb.StoryFailure(code=13, reason="NAN", message="not a number"))
        failure = client.get_story("story-1").failure
    assert (failure.code, failure.reason, failure.message) == ("INTERNAL", "NAN", "not a number")


def test_a_state_of_a_newer_server_is_none(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        client.create_story(story)
        server.stories["story-1"].state = 77  # type: ignore[assignment]
        assert client.get_story("story-1").state is None


def test_stories_are_listed_over_pages(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        for _ in range(5):
            client.create_story(story)
        server.finish("story-2")
        assert [record.story_id for record in client.list_stories()] == [
            f"story-{number}" for number in (5, 4, 3, 2, 1)
        ]
        assert [record.story_id for record in client.list_stories(state=StoryState.FINISHED)] == ["story-2"]
        server.calls.clear()
        next(iter(client.list_stories()))
        assert len(server.calls) == 1  # no page that nobody asked for


def test_a_story_is_cancelled_by_id(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        client.create_story(story)
        assert client.cancel_story("story-1").state is StoryState.CANCELLED
        client.create_story(story)
        server.finish("story-2")
        assert client.cancel_story("story-2").state is StoryState.FINISHED


def test_a_story_that_is_not_there(connect: Connect, server: ScriptedServer) -> None:
    with connect(server.address) as client:
        for call in (client.get_story, client.wait, lambda story_id: list(client.watch(story_id))):
            with pytest.raises(NotFound) as caught:
                call("story-9")
            assert (caught.value.resource_type, caught.value.resource) == ("storyloom.dev/Story", "story-9")


def test_a_story_is_extended(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        client.create_story(story)
        frames = ["{mia} meets {ann}", Frame(prompt="{tom} is asleep", seed=3)]
        cast = {"ann": "a girl", "bob": Character(id="character-1")}
        record = client.extend_story("story-1", frames, new_characters=cast, request_id="mine", priority="high")
    sent = server.calls[-1][1]
    assert (sent.story_id, sent.request_id, sent.scheduling.priority) == ("story-1", "mine", 3)
    assert [(who.name, who.description, who.character_id) for who in sent.new_characters] == [
        ("ann", "a girl", ""),
        ("bob", "", "character-1"),
    ]
    assert not sent.frames[0].HasField("seed")
    assert sent.frames[1].seed == 3
    assert record.parent_id == "story-1"
    assert len(record.story.frames) == 5
    assert list(record.story.characters) == ["mia", "tom", "ann", "bob"]


def test_a_frame_is_made_again(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        client.create_story(story)
        assert client.redo_frame("story-1", 1).parent_id == "story-1"
        same = server.calls[-1][1]
        client.redo_frame("story-1", 1, frame="{mia} is asleep", seed=0)
        other = server.calls[-1][1]
    assert (same.frame_index, same.HasField("frame"), same.HasField("seed")) == (1, False, False)
    assert (other.frame.prompt, other.HasField("seed"), other.seed) == ("{mia} is asleep", True, 0)
    assert len(same.request_id) == 36
    assert same.request_id != other.request_id


def test_a_character_is_found_from_its_description(connect: Connect, server: ScriptedServer) -> None:
    with connect(server.address) as client:
        found = client.discover_character("mia", "a girl", style="a photo of", candidates=32, seed=0, model="large")
        sent = server.calls[-1][1]
        client.discover_character("mia", "a girl", request_id="mine")
    assert (sent.name, sent.description, sent.style, sent.candidates, sent.model) == (
        "mia", "a girl", "a photo of", 32, "large",
    )  # fmt: skip
    assert (sent.HasField("seed"), sent.seed, sent.rounds, len(sent.request_id)) == (True, 0, 0, 36)
    again = server.calls[-1][1]
    assert (again.HasField("seed"), again.candidates, again.request_id) == (False, 0, "mine")
    assert not again.HasField("negative_prompt")
    assert not again.HasField("settings")
    assert found.discovery == (DiscoveryLoop("loop-0", (0, 1, 3), (1, 3), 3),)
    assert found.reference_notes == ("found in 16 candidates",)
    assert found.references_encoded


def test_a_discovery_is_asked_for_in_loops_and_settings(connect: Connect, server: ScriptedServer) -> None:
    with connect(server.address) as client:
        found = client.discover_character(
            "mia", "a girl", loops=2, negative_prompt="", settings={"steps": 50, "solver": "euler"}
        )
        sent = server.calls[-1][1]
        with pytest.raises(ValidationError):
            client.discover_character("mia", "a girl", settings={"steps": 0})
        model = client.get_model()
    assert (model.discovery.solver, model.discovery_negative_prompt) == (Solver.EULER, "a drawing")
    assert [loop.story_id for loop in found.discovery] == ["loop-0", "loop-1"]
    assert (sent.loops, sent.HasField("negative_prompt"), sent.negative_prompt) == (2, True, "")
    assert (sent.settings.steps, sent.settings.solver) == (50, story_pb2.SOLVER_EULER)


def test_what_was_taken_over_and_what_was_flagged_is_told(
    connect: Connect, server: ScriptedServer, story: Story
) -> None:
    def watch(request: pb.WatchStoryRequest, context: object) -> object:
        for event in whole_story(Request(story=server.stories["story-1"].story), context):
            if event.WhichOneof("event") == "frame" and event.frame.frame_index == 1:
                event.frame.reused, event.frame.safety_flag = True, "violence"
            yield event

    server.watch_script = watch  # type: ignore[assignment]
    with connect(server.address) as client:
        client.create_story(story)
        frames = [event for event in client.watch("story-1") if isinstance(event, FrameDone)]
    assert [(frame.frame_index, frame.reused, frame.safety_flag) for frame in frames] == [
        (2, False, ""),
        (1, True, "violence"),
        (0, False, ""),
    ]


def test_characters_are_kept_listed_and_used(connect: Connect, server: ScriptedServer) -> None:
    with connect(server.address) as client:
        mia = client.create_character("mia", "a young woman", [MIA, ANOTHER])
        created = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        assert mia == CharacterRecord("character-1", "mia", "a young woman", 2, created)
        assert server.calls[-1][1].references == [MIA, ANOTHER]
        client.create_character("tom", "an elderly man")
        client.create_character("ann", references=[MIA])
        assert client.get_character("character-1") == mia
        assert [each.name for each in client.list_characters()] == ["ann", "tom", "mia"]
        client.delete_character("character-2")
        assert [each.name for each in client.list_characters()] == ["ann", "mia"]
        with pytest.raises(NotFound, match="list_characters"):
            client.get_character("character-2")
        story = Story(characters={"m": Character(id=mia.character_id)}, frames=(Frame(prompt="{m} is walking"),))
        client.generate(story)
    (sent,) = server.requests[-1].story.characters
    assert (sent.name, sent.description, sent.character_id) == ("m", "", "character-1")


def test_a_character_needs_looks() -> None:
    for nothing in ({}, {"description": " "}, {"id": ""}):
        with pytest.raises(ValidationError):
            Character.model_validate(nothing)


def test_models_are_described_loaded_unloaded_and_warmed(connect: Connect, server: ScriptedServer) -> None:
    with connect(server.address) as client:
        assert client.get_model().name == "mini"
        assert client.get_model("big").name == "big"
        assert client.load_model("big").defaults == Settings(steps=25, guidance_scale=5, solver="ddim")
        assert client.unload_model("big") is None
        assert client.warm_model() == 2.5
    assert [(method, request.name) for method, request in server.calls] == [
        ("GetModel", ""),
        ("GetModel", "big"),
        ("LoadModel", "big"),
        ("UnloadModel", "big"),
        ("WarmModel", ""),
    ]
