"""Both clients against a real gRPC server: events, results, cancelling, deadlines, connection options."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

import storyloom
from storyloom import (
    Accepted,
    AsyncStoryClient,
    Done,
    FrameDone,
    Health,
    Preview,
    Progress,
    ServerError,
    ServerUnavailable,
    Solver,
    Stage,
    Story,
    StoryCancelled,
    StoryClient,
    StoryEvent,
    StoryResult,
    StoryTimeout,
)
from tests.clients.scripted import ScriptedServer, until_cancelled
from tests.clients.scripts import TOTAL_SECONDS, Request, Response, png, whole_story

Generate = Callable[..., StoryResult]


def _generate_sync(address: str, story: Story, *, on_event: Any = None, **options: Any) -> StoryResult:
    with StoryClient(address, **options) as client:
        return client.generate(story, on_event=on_event)


def _generate_async(address: str, story: Story, *, on_event: Any = None, **options: Any) -> StoryResult:
    async def run() -> StoryResult:
        async with AsyncStoryClient(address, **options) as client:
            return await client.generate(story, on_event=on_event)

    return asyncio.run(run())


@pytest.fixture(params=[_generate_sync, _generate_async], ids=["sync", "async"])
def generate(request: pytest.FixtureRequest) -> Generate:
    function: Generate = request.param
    return function


def test_a_story_comes_back_with_its_frames_in_order(generate: Generate, server: ScriptedServer, story: Story) -> None:
    result = generate(server.address, story)
    assert result.story_id == "story-1"
    assert result.seeds == (100, 7, 102)
    assert result.prompts == ("full: {mia} is walking", "full: waving", "full: a lake")
    assert [frame.getpixel((3, 3)) for frame in result.frames] == [(200, 30, 30), (30, 160, 60), (40, 60, 200)]
    assert result.timings.total == TOTAL_SECONDS
    assert result.settings.steps == 4
    assert result.settings.guidance_scale == 5.1  # not 5.099999904632568
    assert result.settings.solver is Solver.DDIM
    assert result.settings.model == "mini"


def test_the_request_says_what_the_story_says(generate: Generate, server: ScriptedServer, story: Story) -> None:
    generate(server.address, story)
    sent = server.requests[0].story
    assert [(who.name, who.description) for who in sent.characters] == [
        ("mia", "a young woman"),
        ("tom", "an elderly man"),
    ]
    assert [frame.prompt for frame in sent.frames] == ["{mia} is walking", "waving", "a lake"]
    assert sent.frames[1].characters == ["tom"]
    assert sent.frames[1].seed == 7
    assert not sent.frames[0].HasField("seed")
    assert not sent.settings.HasField("seed")
    assert not sent.settings.consistency.HasField("enabled")
    assert sent.settings.steps == 4


def test_events_are_typed_and_in_order(generate: Generate, server: ScriptedServer, story: Story) -> None:
    events: list[StoryEvent] = []
    generate(server.address, story, on_event=events.append)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    first, *_, last = events
    assert isinstance(first, Accepted)
    assert first.queue_position == 1
    assert first.frame_seeds == (100, 7, 102)
    assert isinstance(last, Done)
    stages = [event.stage for event in events if isinstance(event, Progress)]
    assert stages == [Stage.QUEUED, Stage.ENCODING, *[Stage.DENOISING] * 4]
    previews = [event for event in events if isinstance(event, Preview)]
    assert [(event.frame_index, event.step) for event in previews] == [
        (frame, step) for step in (2, 4) for frame in range(3)
    ]
    assert previews[0].picture.open().size == (32, 32)
    assert [event.frame_index for event in events if isinstance(event, FrameDone)] == [2, 1, 0]


def test_an_event_of_a_newer_server_is_skipped(generate: Generate, server: ScriptedServer, story: Story) -> None:
    def script(request: Request, context: Any) -> Iterator[Response]:
        yield Response(story_id="story-1", sequence=1)
        for response in whole_story(request, context):
            response.sequence += 1
            yield response

    server.script = script
    assert len(generate(server.address, story).frames) == 3


def test_a_stream_that_ends_early_is_an_error(generate: Generate, server: ScriptedServer, story: Story) -> None:
    server.script = lambda request, context: iter(list(whole_story(request, context))[:-1])
    with pytest.raises(ServerError, match="before the story was done"):
        generate(server.address, story)


def test_a_missing_frame_is_an_error(generate: Generate, server: ScriptedServer, story: Story) -> None:
    def script(request: Request, context: Any) -> Iterator[Response]:
        return (event for event in whole_story(request, context) if event.frame.frame_index != 1)

    server.script = script
    with pytest.raises(ServerError, match=r"without sending frames \[1\]"):
        generate(server.address, story)


def test_a_picture_over_the_default_grpc_limit_arrives(
    generate: Generate, server: ScriptedServer, story: Story
) -> None:
    big = png((1, 2, 3)) + bytes(6 * 1024 * 1024)

    def script(request: Request, context: Any) -> Iterator[Response]:
        for response in whole_story(request, context):
            if response.WhichOneof("event") == "frame":
                response.frame.image.png = big
            yield response

    server.script = script
    assert len(generate(server.address, story).pictures[0].png) == len(big)


def test_the_deadline_reaches_the_server(generate: Generate, server: ScriptedServer, story: Story) -> None:
    server.script = until_cancelled(server)
    start = time.monotonic()
    with pytest.raises(StoryTimeout):
        generate(server.address, story, timeout=0.5)
    assert time.monotonic() - start < 5
    assert server.cancelled.wait(5)


def test_no_server_is_told_soon(generate: Generate, story: Story) -> None:
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        start = time.monotonic()
        with pytest.raises(ServerUnavailable):
            generate(f"localhost:{unused.getsockname()[1]}", story)
    assert time.monotonic() - start < 10


def test_wait_for_ready_waits_for_a_server_that_comes_late(generate: Generate, story: Story) -> None:
    with socket.socket() as reserved:
        reserved.bind(("localhost", 0))
        port = reserved.getsockname()[1]
    servers: list[grpc.Server] = []

    def come_late() -> None:
        late = grpc.server(futures.ThreadPoolExecutor(2))
        scripted = ScriptedServer.__new__(ScriptedServer)
        scripted.script, scripted.requests, scripted.metadata = whole_story, [], {}
        storyloom.v1.story_service_pb2_grpc.add_StoryServiceServicer_to_server(scripted, late)
        late.add_insecure_port(f"localhost:{port}")
        late.start()
        servers.append(late)

    timer = threading.Timer(0.7, come_late)
    timer.start()
    try:
        assert len(generate(f"localhost:{port}", story, wait_for_ready=True, timeout=20).frames) == 3
    finally:
        timer.join()
        for late in servers:
            late.stop(None).wait()


def test_metadata_and_user_agent_are_sent(generate: Generate, server: ScriptedServer, story: Story) -> None:
    generate(server.address, story, metadata=[("authorization", "Bearer x")])
    assert server.metadata["authorization"] == "Bearer x"
    assert str(server.metadata["user-agent"]).startswith(f"storyloom-python/{storyloom.__version__}")


def test_closing_the_client_ends_its_stories(server: ScriptedServer, story: Story) -> None:
    server.script = until_cancelled(server)
    client = StoryClient(server.address)
    events = client.stream(story)
    next(events)
    client.close()
    with pytest.raises(StoryCancelled):
        next(events)


def test_a_channel_of_the_caller_is_used_and_stays_open(server: ScriptedServer, story: Story) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for _ in range(2):
            with StoryClient("nowhere.invalid:1", channel=channel) as client:
                assert len(client.generate(story).frames) == 3


def test_one_client_serves_many_threads(server: ScriptedServer, story: Story) -> None:
    with StoryClient(server.address) as client, futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: client.generate(story), range(8)))
    assert {result.seeds for result in results} == {(100, 7, 102)}


def test_models_and_health(server: ScriptedServer) -> None:
    with StoryClient(server.address) as client:
        (model,) = client.list_models()
        assert (model.name, model.is_default, model.sizes) == ("mini", True, ((128, 128),))
        assert model.methods == ("storynizor", "consistory")
        assert model.solvers == (Solver.DDIM, Solver.EULER)  # and not the one of a newer server
        assert model.defaults.steps == 25
        assert model.limits.max_prompt_tokens == 77
        assert client.health() == Health(alive=True, ready=True)
        server.set_ready(False)
        assert client.health() == Health(alive=True, ready=False)
        server.stop()
        assert client.health() == Health(alive=False, ready=False)

    async def run(address: str) -> tuple[Any, Health]:
        async with AsyncStoryClient(address) as other:
            return await other.list_models(), await other.health()

    second = ScriptedServer()
    try:
        assert asyncio.run(run(second.address)) == ((model,), Health(alive=True, ready=True))
    finally:
        second.stop()


def test_sync_and_async_clients_have_one_face() -> None:
    def face(client: type) -> dict[str, tuple[str, list[str]]]:
        members = inspect.getmembers(client, inspect.isfunction)
        return {
            name: (inspect.getdoc(function) or "", list(inspect.signature(function).parameters))
            for name, function in members
            if not name.startswith("_")
        }

    assert face(StoryClient) == face(AsyncStoryClient)
    assert all(doc for doc, _ in face(StoryClient).values())
    sync_init, async_init = (inspect.signature(kind.__init__).parameters for kind in (StoryClient, AsyncStoryClient))
    assert list(sync_init) == list(async_init)
