"""Streams that break: every event comes once, whatever the server and the network do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyloom import (
    Done,
    OnDisconnect,
    RetryPolicy,
    ServerError,
    ServerUnavailable,
    Story,
    StoryCancelled,
    StoryClient,
    StoryEvent,
    StoryFailed,
    StoryTimeout,
)
from tests.clients.blocking import BlockingClient, Connect
from tests.clients.cable import Cable
from tests.clients.scripted import BreakingStory, ScriptedServer, until_cancelled
from tests.clients.scripts import Request, Response, failing, refusing, retry_info, whole_story

_AT_ONCE = RetryPolicy(attempts=50, resumes=50, initial_backoff=0, maximum_backoff=0)
_CODES = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN]


def _whole(story: Story) -> list[int]:
    # Sequence numbers of the events that `whole_story` sends: accepted, two of progress, steps, previews, frames, done.
    frames = len(story.frames)
    return list(range(1, 3 + 4 + 2 * frames + frames + 1 + 1))


@pytest.mark.parametrize("code", _CODES)
def test_a_stream_that_breaks_at_any_event_is_whole(
    connect: Connect, server: ScriptedServer, story: Story, code: grpc.StatusCode
) -> None:
    with connect(server.address, retry=_AT_ONCE) as client:
        for position in range(1, len(_whole(story)) + 1):
            breaking = BreakingStory(server, [position], code)
            events: list[StoryEvent] = list(client.stream(story))
            assert [event.sequence for event in events] == _whole(story)
            assert breaking.watched == ([position] if position < len(_whole(story)) else [])
    assert server.cancels() == []


@pytest.fixture(scope="module")
def shared() -> Iterator[ScriptedServer]:
    running = ScriptedServer()
    yield running
    running.stop()


@pytest.mark.parametrize("kind", [StoryClient, BlockingClient], ids=["sync", "async"])
@given(breaks=st.lists(st.integers(0, 6), max_size=12), code=st.sampled_from(_CODES), overlap=st.integers(0, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_event_is_lost_or_given_twice(
    kind: Connect, shared: ScriptedServer, breaks: list[int], code: grpc.StatusCode, overlap: int
) -> None:
    story = Story.model_validate({"frames": ["a", "b"], "settings": {"preview_interval": 2}})
    # The first call has to get something, or one of the codes is no reason to make it again.
    BreakingStory(shared, [1, *breaks], code, overlap)
    with kind(shared.address, retry=_AT_ONCE) as client:
        events: list[StoryEvent] = list(client.stream(story))
    assert [event.sequence for event in events] == _whole(story)
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize("position", [1, 5, 12])
def test_a_cut_connection_is_made_again(connect: Connect, server: ScriptedServer, story: Story, position: int) -> None:
    cable = Cable(server.port)

    server.script = until_cancelled(server, events=position)
    try:
        with connect(cable.address, retry=RetryPolicy(initial_backoff=0.02)) as client:
            sequences = []
            for event in client.stream(story, timeout=60):
                sequences.append(event.sequence)
                if event.sequence == position:
                    server.go_on_with(server.requests[0])
                    cable.cut()
        assert sequences == _whole(story)
        assert cable.connections > 1
    finally:
        cable.close()


def test_a_restarted_server_goes_on_with_the_story(connect: Connect, story: Story) -> None:
    first = ScriptedServer()
    first.script = until_cancelled(first)
    second: list[ScriptedServer] = []
    try:
        with connect(first.address, retry=RetryPolicy(initial_backoff=0.05), timeout=60) as client:
            sequences = []
            for event in client.stream(story):
                sequences.append(event.sequence)
                if event.sequence == 1:
                    first.stop()
                    second.append(ScriptedServer(port=first.port))
                    second[0].go_on_with(first.requests[0])
        assert sequences == _whole(story)
    finally:
        for server in (first, *second):
            server.stop()


def test_a_server_that_stays_away_leaves_the_way_back(connect: Connect, server: ScriptedServer, story: Story) -> None:
    BreakingStory(server, [3, *[0] * 99], grpc.StatusCode.UNAVAILABLE)
    policy = RetryPolicy(resumes=3, initial_backoff=0, maximum_backoff=0)
    with connect(server.address, retry=policy) as client, pytest.raises(ServerUnavailable) as caught:
        client.generate(story)
    assert (caught.value.story_id, caught.value.sequence) == ("story-1", 3)
    assert 'follow it with watch("story-1", after=3)' in str(caught.value)
    assert [method for method, _ in server.calls] == ["WatchStory"] * 3  # and no cancelling


def test_tries_are_counted_anew_after_each_event(connect: Connect, server: ScriptedServer, story: Story) -> None:
    BreakingStory(server, [1] * 99, grpc.StatusCode.UNAVAILABLE)
    policy = RetryPolicy(resumes=1, initial_backoff=0, maximum_backoff=0)
    with connect(server.address, retry=policy) as client:
        assert len(client.generate(story).frames) == 3


def test_who_never_retries_gets_the_error(connect: Connect, server: ScriptedServer, story: Story) -> None:
    BreakingStory(server, [3], grpc.StatusCode.UNAVAILABLE)
    with connect(server.address, retry=RetryPolicy.never()) as client, pytest.raises(ServerUnavailable, match="broken"):
        client.generate(story)
    assert server.calls == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INTERNAL, StoryFailed),
        (grpc.StatusCode.CANCELLED, StoryCancelled),
        (grpc.StatusCode.DATA_LOSS, StoryFailed),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, StoryFailed),
    ],
)
def test_a_story_that_the_server_ended_is_not_taken_up(
    connect: Connect, server: ScriptedServer, story: Story, code: grpc.StatusCode, kind: type[ServerError]
) -> None:
    refuse = refusing(code, "said by the server", error_details_pb2.ErrorInfo(reason="SO_IT_IS"))

    def script(request: Request, context: Any) -> Iterator[Response]:
        yield next(whole_story(request, context))
        refuse(context)

    server.script = script
    with connect(server.address, retry=_AT_ONCE) as client, pytest.raises(kind, match="said by the server") as caught:
        client.generate(story)
    assert caught.value.story_id == "story-1"
    assert server.calls == []


def test_a_story_that_turns_out_to_have_failed_says_so(connect: Connect, server: ScriptedServer, story: Story) -> None:
    BreakingStory(server, [2], grpc.StatusCode.UNAVAILABLE)
    server.watch_script = failing(grpc.StatusCode.INTERNAL, "not a number", error_details_pb2.ErrorInfo(reason="NAN"))
    with connect(server.address, retry=_AT_ONCE) as client, pytest.raises(StoryFailed, match="not a number"):
        client.generate(story)


def test_the_timeout_holds_for_all_calls_together(connect: Connect, server: ScriptedServer, story: Story) -> None:
    BreakingStory(server, [1, *[0] * 999], grpc.StatusCode.UNAVAILABLE)
    policy = RetryPolicy(resumes=999, initial_backoff=0.05, maximum_backoff=0.05)
    with connect(server.address, retry=policy) as client, pytest.raises((ServerUnavailable, StoryTimeout)):
        client.generate(story, timeout=0.6)
    assert 2 <= len(server.calls) <= 40


def test_a_pause_that_the_server_asks_for_is_kept_while_resuming(
    connect: Connect, server: ScriptedServer, story: Story
) -> None:
    BreakingStory(server, [1], grpc.StatusCode.UNAVAILABLE)
    busy = refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch", retry_info(0.01))
    server.refusals["WatchStory"] = [busy, busy]
    with connect(server.address, retry=_AT_ONCE) as client:
        assert len(client.generate(story).frames) == 3
    assert [method for method, _ in server.calls] == ["WatchStory"] * 3


def test_watching_takes_up_a_broken_stream_and_cancels_nothing(
    connect: Connect, server: ScriptedServer, story: Story
) -> None:
    breaking = BreakingStory(server, [], grpc.StatusCode.UNAVAILABLE)
    with connect(server.address, retry=_AT_ONCE) as client:
        assert len(client.generate(story).frames) == 3
        breaking.break_again([2, 0, 3])
        assert [event.sequence for event in client.watch("story-1")] == _whole(story)
        assert [event.sequence for event in client.watch("story-1", 4)] == _whole(story)[4:]
        events = client.watch("story-1")
        next(events)
        events.close()
    assert server.cancels() == []


def test_a_server_that_cancels_on_disconnect_is_believed(
    connect: Connect, server: ScriptedServer, story: Story
) -> None:
    BreakingStory(server, [2], grpc.StatusCode.UNAVAILABLE)
    server.watch_script = failing(grpc.StatusCode.CANCELLED, "gone", error_details_pb2.ErrorInfo(reason="CANCELLED"))
    with connect(server.address, retry=_AT_ONCE) as client, pytest.raises(StoryCancelled, match="gone"):
        client.generate(story, on_disconnect=OnDisconnect.CANCEL)
    assert server.requests[0].on_disconnect == 2
