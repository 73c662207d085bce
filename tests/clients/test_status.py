"""What a caller catches for each way a call can fail."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from storyloom import (
    InvalidStory,
    NotFound,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    Story,
    StoryClient,
    StoryFailed,
    StoryloomError,
    StoryTimeout,
    Violation,
)
from tests.clients.scripted import ScriptedServer
from tests.clients.scripts import Script, failing

_BAD = error_details_pb2.BadRequest(
    field_violations=[
        error_details_pb2.BadRequest.FieldViolation(field="story.frames[2].prompt", description="is too long"),
        error_details_pb2.BadRequest.FieldViolation(field="story.settings.steps", description="is over 100"),
    ]
)
_RETRY = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
_INFO = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="storyloom.dev", metadata={"waiting": "64"})


def _failure(server: ScriptedServer, story: Story, script: Script) -> ServerError:
    server.script = script
    with StoryClient(server.address) as client, pytest.raises(ServerError) as caught:
        client.generate(story)
    assert isinstance(caught.value, StoryloomError)
    return caught.value


def test_violations_are_listed_and_readable(server: ScriptedServer, story: Story) -> None:
    error = _failure(server, story, failing(grpc.StatusCode.INVALID_ARGUMENT, "the story is not valid", _INFO, _BAD))
    assert isinstance(error, InvalidStory)
    assert error.violations == (
        Violation("story.frames[2].prompt", "is too long"),
        Violation("story.settings.steps", "is over 100"),
    )
    assert str(error).splitlines() == [
        "the story is not valid",
        "  story.frames[2].prompt: is too long",
        "  story.settings.steps: is over 100",
    ]
    assert error.details.code == "INVALID_ARGUMENT"


def test_a_full_queue_says_when_to_come_back(server: ScriptedServer, story: Story) -> None:
    error = _failure(server, story, failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", _INFO, _RETRY))
    assert isinstance(error, ServerBusy)
    assert error.retry_after == 2.5
    assert error.details.reason == "QUEUE_FULL"
    assert error.details.metadata == {"waiting": "64"}


def test_a_story_that_is_too_much_is_not_called_busy(server: ScriptedServer, story: Story) -> None:
    error = _failure(server, story, failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory"))
    assert isinstance(error, StoryFailed)


def test_a_draining_server_says_when_to_come_back(server: ScriptedServer, story: Story) -> None:
    error = _failure(server, story, failing(grpc.StatusCode.UNAVAILABLE, "draining", _RETRY))
    assert isinstance(error, ServerUnavailable)
    assert error.retry_after == 2.5
    assert error.message == "draining"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.INTERNAL, StoryFailed),
        (grpc.StatusCode.ABORTED, StoryFailed),
        (grpc.StatusCode.FAILED_PRECONDITION, StoryFailed),
        (grpc.StatusCode.DEADLINE_EXCEEDED, StoryTimeout),
        (grpc.StatusCode.PERMISSION_DENIED, ServerError),
        (grpc.StatusCode.UNKNOWN, ServerError),
    ],
)
def test_each_code_has_its_error(
    server: ScriptedServer, story: Story, code: grpc.StatusCode, kind: type[ServerError]
) -> None:
    error = _failure(server, story, failing(code, "what happened"))
    assert type(error) is kind
    assert str(error) == "what happened"
    assert error.details.code == code.name


def test_another_server_is_recognised(server: ScriptedServer, story: Story) -> None:
    error = _failure(server, story, failing(grpc.StatusCode.UNIMPLEMENTED, "no such method"))
    assert str(error) == "no such method; is this a Storyloom server, of this client's version?"


def test_mangled_details_leave_the_plain_message(server: ScriptedServer, story: Story) -> None:
    def script(_request: object, context: grpc.ServicerContext) -> object:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.INTERNAL, "plain")

    error = _failure(server, story, script)  # type: ignore[arg-type]
    assert isinstance(error, StoryFailed)
    assert str(error) == "plain"
