"""When a call is made again: by what it failed with, how long after, and with the same request id."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom import RetryPolicy, ServerBusy, ServerError, ServerUnavailable, Story
from storyloom._retry import Tries
from storyloom._status import Failure
from tests.clients.blocking import Connect
from tests.clients.scripted import ScriptedServer
from tests.clients.scripts import Refusal, Request, Response, Script, failing, refusing, retry_info, whole_story

_AT_ONCE = RetryPolicy(initial_backoff=0, maximum_backoff=0)
_UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE)
_PUSHBACK = "grpc-retry-pushback-ms"


def _first(server: ScriptedServer, times: int, script: Script) -> None:
    def play(request: Request, context: Any) -> Iterator[Response]:
        return script(request, context) if len(server.requests) <= times else whole_story(request, context)

    server.script = play


def test_a_repeated_call_has_the_same_request_id(connect: Connect, server: ScriptedServer, story: Story) -> None:
    _first(server, 2, failing(grpc.StatusCode.UNAVAILABLE, "starting"))
    with connect(server.address, retry=_AT_ONCE) as client:
        assert len(client.generate(story).frames) == 3
        client.generate(story)
    first, second, third, other = (request.request_id for request in server.requests)
    assert first == second == third != other
    assert uuid.UUID(first).version == 4


def test_what_the_caller_wishes_is_sent(connect: Connect, server: ScriptedServer, story: Story) -> None:
    with connect(server.address) as client:
        client.generate(story, request_id="mine", priority="high", deadline=12.5, on_disconnect="finish")
        client.generate(story)
    sent, plain = server.requests
    assert (sent.request_id, sent.scheduling.priority, sent.on_disconnect) == ("mine", 3, 1)
    assert sent.scheduling.deadline.ToMilliseconds() == 12_500
    assert not plain.HasField("scheduling")
    assert plain.on_disconnect == 0


@pytest.mark.parametrize("deadline", [0, -1, float("inf"), float("nan")])
def test_a_deadline_that_makes_no_sense_is_refused(
    connect: Connect, server: ScriptedServer, story: Story, deadline: float
) -> None:
    with connect(server.address) as client, pytest.raises(ValueError, match="positive number of seconds"):
        client.generate(story, deadline=deadline)
    assert server.requests == []


def test_a_full_queue_with_a_delay_is_tried_again(connect: Connect, server: ScriptedServer, story: Story) -> None:
    _first(server, 2, failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry_info(0.01)))
    with connect(server.address, retry=_AT_ONCE) as client:
        assert len(client.generate(story).frames) == 3
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory"), ServerError),
        (failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "come back tomorrow", retry_info(86_400)), ServerBusy),
        (failing(grpc.StatusCode.INTERNAL, "broken"), ServerError),
        (failing(grpc.StatusCode.ABORTED, "broken"), ServerError),
        (failing(grpc.StatusCode.UNAVAILABLE, "no", trailers=[(_PUSHBACK, "-1")]), ServerUnavailable),
        (failing(grpc.StatusCode.UNAVAILABLE, "no", trailers=[(_PUSHBACK, "soon")]), ServerUnavailable),
        (failing(grpc.StatusCode.UNAVAILABLE, "no", retry_info(0), trailers=[(_PUSHBACK, "99999")]), ServerUnavailable),
    ],
)
def test_what_another_try_cannot_help_is_told_at_once(
    connect: Connect, server: ScriptedServer, story: Story, script: Script, kind: type[ServerError]
) -> None:
    server.script = script
    with connect(server.address, retry=_AT_ONCE) as client, pytest.raises(kind):
        client.generate(story)
    assert len(server.requests) == 1


def test_the_pushback_of_a_try_wins_over_the_status(connect: Connect, server: ScriptedServer, story: Story) -> None:
    refuse = failing(grpc.StatusCode.UNAVAILABLE, "busy", retry_info(3600), trailers=[(_PUSHBACK, "5")])
    _first(server, 1, refuse)
    with connect(server.address, retry=_AT_ONCE) as client:
        assert len(client.generate(story).frames) == 3


def test_tries_end(connect: Connect, server: ScriptedServer, story: Story) -> None:
    server.script = failing(grpc.StatusCode.UNAVAILABLE, "starting")
    policy = RetryPolicy(attempts=3, initial_backoff=0, maximum_backoff=0)
    with connect(server.address, retry=policy) as client, pytest.raises(ServerUnavailable):
        client.generate(story)
    assert len(server.requests) == 3


def _calls(client: Any) -> dict[str, Callable[[], Any]]:
    return {
        "GetStory": lambda: client.get_story("story-1"),
        "CreateCharacter": lambda: client.create_character("m", "x"),
        "DiscoverCharacter": lambda: client.discover_character("m", "x"),
    }


@pytest.mark.parametrize(
    ("method", "refusal", "tries"),
    [
        ("GetStory", refusing(grpc.StatusCode.UNAVAILABLE, "starting"), 2),
        # Without a word of the server's it may have been made already, and there is no request id to tell.
        ("CreateCharacter", refusing(grpc.StatusCode.UNAVAILABLE, "lost"), 1),
        ("CreateCharacter", refusing(grpc.StatusCode.UNAVAILABLE, "starting", retry_info(0.01)), 2),
        ("DiscoverCharacter", refusing(grpc.StatusCode.UNAVAILABLE, "lost"), 2),
    ],
)
def test_unary_calls_are_repeated_where_that_does_no_harm(
    connect: Connect, server: ScriptedServer, story: Story, method: str, refusal: Refusal, tries: int
) -> None:
    with connect(server.address, retry=_AT_ONCE) as client:
        client.create_story(story)
        server.refusals[method] = [refusal]
        if tries == 1:
            with pytest.raises(ServerUnavailable):
                _calls(client)[method]()
        else:
            _calls(client)[method]()
    assert [called for called, _ in server.calls].count(method) == tries


@pytest.mark.parametrize(
    "values",
    [{"attempts": 0}, {"resumes": -1}, {"initial_backoff": -1}, {"initial_backoff": 9}, {"longest_wait": -1}],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**values)


@given(
    initial=st.floats(0, 2),
    maximum=st.floats(2, 10),
    draw=st.floats(0, 1),
    delays=st.lists(st.none() | st.floats(0, 60), max_size=40),
    timeout=st.none() | st.floats(0, 200),
    resuming=st.booleans(),
)
def test_pauses_double_up_to_the_cap_and_keep_what_is_asked(
    initial: float,
    maximum: float,
    draw: float,
    delays: list[float | None],
    timeout: float | None,
    resuming: bool,
) -> None:
    policy = RetryPolicy(attempts=9, resumes=8, initial_backoff=initial, maximum_backoff=maximum)
    now = 0.0
    tries = Tries(policy, timeout, clock=lambda: now, draw=lambda low, high: low + (high - low) * draw)
    for count, delay in enumerate(delays):
        tries.remaining()
        pause = tries.pause(Failure(grpc.StatusCode.UNAVAILABLE, retry_info=delay), resuming=resuming)
        backoff = min(maximum, initial * 2**count)
        if pause is None:
            out_of_time = timeout is not None and now + max(backoff, 1.2 * (delay or 0)) >= timeout - 1e-9
            assert count >= 8 or (delay or 0) > policy.longest_wait or out_of_time
            return
        assert count < 8
        assert pause >= 0.5 * backoff
        assert pause >= (delay or 0)
        assert pause <= max(backoff, 1.2 * (delay or 0))
        now += pause
        assert timeout is None or now < timeout + 1e-9


def test_pauses_differ_from_client_to_client() -> None:
    pauses = {Tries(RetryPolicy(), None).pause(_UNAVAILABLE, resuming=False) for _ in itertools.repeat(None, 20)}
    assert len(pauses) > 1
