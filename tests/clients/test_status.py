"""What a caller catches for each way a call can fail."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from storyloom import (
    DeadlineRefused,
    FailedPrecondition,
    InvalidRequest,
    InvalidStory,
    NotFound,
    PermissionDenied,
    RequestIdReused,
    RetryPolicy,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    Story,
    StoryCancelled,
    StoryClient,
    StoryFailed,
    StoryloomError,
    StoryTimeout,
    Unauthenticated,
    Violation,
)
from tests.clients.scripted import ScriptedServer
from tests.clients.scripts import Script, failing, refusing

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
    with StoryClient(server.address, retry=RetryPolicy.never()) as client, pytest.raises(ServerError) as caught:
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
        (grpc.StatusCode.ALREADY_EXISTS, RequestIdReused),
        (grpc.StatusCode.INTERNAL, StoryFailed),
        (grpc.StatusCode.ABORTED, StoryFailed),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.DEADLINE_EXCEEDED, StoryTimeout),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.CANCELLED, StoryCancelled),
        (grpc.StatusCode.UNAVAILABLE, ServerUnavailable),
    ],
)
def test_each_code_has_its_error(
    server: ScriptedServer, story: Story, code: grpc.StatusCode, kind: type[ServerError]
) -> None:
    error = _failure(server, story, failing(code, "what happened"))
    assert type(error) is kind
    assert error.message == "what happened"
    assert error.details.code == code.name
    # A proxy, or gRPC itself, does not say what to do; this package does.
    assert str(error).startswith("what happened; ")
    # A Storyloom server does, and is not talked over.
    said = _failure(server, story, failing(code, "what happened", error_details_pb2.ErrorInfo(reason="WHAT_HAPPENED")))
    assert type(said) is kind
    assert str(said) == "what happened"


def test_an_unknown_code_is_shown_as_it_is(server: ScriptedServer, story: Story) -> None:
    error = _failure(server, story, failing(grpc.StatusCode.UNKNOWN, "what happened"))
    assert type(error) is ServerError
    assert str(error) == "what happened"


def test_what_is_not_there_is_named(server: ScriptedServer, story: Story) -> None:
    resource = error_details_pb2.ResourceInfo(resource_type="storyloom.dev/Model", resource_name="big")
    error = _failure(server, story, failing(grpc.StatusCode.NOT_FOUND, "there is no model big", resource))
    assert isinstance(error, NotFound)
    assert (error.resource_type, error.resource) == ("storyloom.dev/Model", "big")


def test_a_deadline_that_cannot_be_met_comes_with_an_estimate(server: ScriptedServer, story: Story) -> None:
    info = error_details_pb2.ErrorInfo(reason="DEADLINE_UNMEETABLE", metadata={"estimateMs": "12500", "leftMs": "900"})
    error = _failure(server, story, failing(grpc.StatusCode.DEADLINE_EXCEEDED, "would take about 12.5 s", info))
    assert isinstance(error, DeadlineRefused)
    assert error.estimate == 12.5
    assert server.cancels() == []


def test_a_request_without_a_story_is_no_invalid_story(server: ScriptedServer) -> None:
    server.refusals["CreateCharacter"] = [
        refusing(grpc.StatusCode.INVALID_ARGUMENT, "the character is not valid", _BAD)
    ]
    with StoryClient(server.address) as client, pytest.raises(InvalidRequest) as caught:
        client.create_character("mia")
    assert type(caught.value) is InvalidRequest
    assert len(caught.value.violations) == 2


def test_the_text_of_every_error_says_what_to_do(server: ScriptedServer, story: Story) -> None:
    server.script = failing(grpc.StatusCode.UNAUTHENTICATED, "no token")
    with StoryClient(server.address) as client, pytest.raises(Unauthenticated, match="STORYLOOM_TOKEN"):
        client.generate(story)


def test_another_server_is_recognised(server: ScriptedServer, story: Story) -> None:
    error = _failure(server, story, failing(grpc.StatusCode.UNIMPLEMENTED, "no such method"))
    assert str(error) == "no such method; is this a Storyloom server, of this client's version?"


def test_mangled_details_leave_the_plain_message(server: ScriptedServer, story: Story) -> None:
    def script(_request: object, context: grpc.ServicerContext) -> object:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.INTERNAL, "plain")

    error = _failure(server, story, script)  # type: ignore[arg-type]
    assert isinstance(error, StoryFailed)
    assert error.message == "plain"
