"""Who leaves a story's stream early cancels the story, unless it is to be finished."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from storyloom import AsyncStoryClient, OnDisconnect, RetryPolicy, Story, StoryClient, StoryEvent, StoryTimeout
from tests.clients.blocking import Connect
from tests.clients.scripted import ScriptedServer, until_cancelled
from tests.clients.scripts import Request, Response, refusing, whole_story


@pytest.fixture(autouse=True)
def _stuck(server: ScriptedServer) -> None:
    server.script = until_cancelled(server)


def test_leaving_the_loop_cancels(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        with contextlib.closing(client.stream(story)) as events:
            for _ in events:
                break
        assert server.cancels() == ["story-1"]
    assert server.cancelled.wait(5)


def test_an_error_of_the_callers_cancels(connect: Connect, server: ScriptedServer, story: Story) -> None:
    def refuse(_event: StoryEvent) -> None:
        raise KeyError("mine")

    with connect(server.address) as client, pytest.raises(KeyError):
        client.generate(story, on_event=refuse)
    assert server.cancels() == ["story-1"]


def test_the_timeout_cancels(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client, pytest.raises(StoryTimeout, match="longer timeout"):
        client.generate(story, timeout=0.3)
    assert server.cancels() == ["story-1"]


def test_a_cancelled_task_cancels(server: ScriptedServer, story: Story) -> None:
    async def run() -> None:
        async with AsyncStoryClient(server.address) as client:
            begun = asyncio.Event()
            task = asyncio.create_task(client.generate(story, on_event=lambda _: begun.set()))
            await asyncio.wait_for(begun.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert server.cancels() == ["story-1"]


def test_a_task_cancelled_between_two_tries_cancels(server: ScriptedServer, story: Story) -> None:
    def script(request: Request, context: Any) -> Iterator[Response]:
        yield next(whole_story(request, context))
        context.abort(grpc.StatusCode.UNAVAILABLE, "broken")

    server.script = script

    async def run() -> None:
        policy = RetryPolicy(initial_backoff=60, maximum_backoff=60)
        async with AsyncStoryClient(server.address, retry=policy) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.generate(story), 1)

    asyncio.run(run())
    assert server.cancels() == ["story-1"]


def test_closing_the_client_cancels_what_it_streams(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        events = [client.stream(story), client.stream(story), client.stream(story, on_disconnect=OnDisconnect.FINISH)]
        for each in events:
            next(each)
        client.close()
        assert server.cancels() == ["story-1", "story-1"]
        for each in events:
            with contextlib.suppress(Exception):
                each.close()
    assert len(server.cancels()) == 2


def test_a_story_that_is_to_be_finished_is_left_alone(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        events = client.stream(story, on_disconnect=OnDisconnect.FINISH)
        next(events)
        events.close()
        with pytest.raises(StoryTimeout):
            client.generate(story, timeout=0.3, on_disconnect=OnDisconnect.FINISH)
    assert server.cancels() == []


def test_a_finished_story_is_not_cancelled(connect: Connect, server: ScriptedServer, story: Story) -> None:
    server.script = whole_story
    with connect(server.address) as client:
        client.generate(story)
        with contextlib.closing(client.stream(story)) as events:
            while next(events).sequence < 17:
                pass
    assert server.cancels() == []


def test_a_story_not_heard_of_yet_is_found_by_its_request_id(
    connect: Connect, server: ScriptedServer, story: Story
) -> None:
    # The first call hangs before its first event; the same one again joins the story that it made.
    stuck = until_cancelled(server, events=0)

    def script(request: Request, context: Any) -> Iterator[Response]:
        return stuck(request, context) if len(server.requests) == 1 else whole_story(request, context)

    server.script = script
    with connect(server.address) as client, pytest.raises(StoryTimeout):
        client.generate(story, timeout=0.3)
    first, second = server.requests
    assert first == second
    assert server.cancels() == ["story-1"]


def test_a_server_that_cannot_cancel_does_not_hide_the_error(
    connect: Connect, server: ScriptedServer, story: Story
) -> None:
    server.refusals["CancelStory"] = [refusing(grpc.StatusCode.INTERNAL, "no")]
    with connect(server.address) as client, pytest.raises(StoryTimeout):
        client.generate(story, timeout=0.3)
    assert server.cancels() == ["story-1"]


def test_leaving_does_not_wait_for_a_server_that_hangs(connect: Connect, server: ScriptedServer, story: Story) -> None:
    given_up: queue.Queue[bool] = queue.Queue()

    def hang(context: Any) -> None:
        gone = threading.Event()
        context.add_callback(gone.set)
        given_up.put(gone.wait(20))

    server.refusals["CancelStory"] = [hang]
    with connect(server.address) as client, pytest.raises(StoryTimeout):
        client.generate(story, timeout=0.3)
    assert given_up.get(timeout=30)


def test_a_forgotten_stream_cancels_its_story(server: ScriptedServer, story: Story) -> None:
    with StoryClient(server.address) as client:
        events = client.stream(story)
        next(events)
        del events
        assert server.cancels() == ["story-1"]
