"""Errors as clients see them: one status with its details, well formed and small enough, over a real channel."""

import asyncio
import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from storyloom_server import errors
from storyloom_server.story_error import StoryError, abort
from storyloom_server.violations import Violation

VIOLATIONS = [Violation(f"story.frames[{index}].prompt", "is empty; write something") for index in range(3)]
C = grpc.StatusCode

# Each kind of error, its code, and its details beside the ErrorInfo.
TABLE: list[tuple[StoryError, grpc.StatusCode, set[str]]] = [
    (errors.invalid_story(VIOLATIONS), C.INVALID_ARGUMENT, {"BadRequest"}),
    (errors.safety_blocked(VIOLATIONS), C.INVALID_ARGUMENT, {"BadRequest"}),
    (errors.not_found("story", "s-1", "list the stories"), C.NOT_FOUND, {"ResourceInfo"}),
    (errors.request_id_reused("r-1"), C.ALREADY_EXISTS, set()),
    (
        errors.failed_precondition("MODEL_NOT_LOADED", "models/mini", "mini is not loaded; load it first"),
        C.FAILED_PRECONDITION,
        {"PreconditionFailure"},
    ),
    (errors.unauthenticated("TOKEN_MISSING", "send a token"), C.UNAUTHENTICATED, set()),
    (errors.permission_denied("ADMIN_REQUIRED", "studio-a", "studio-a may not"), C.PERMISSION_DENIED, set()),
    (
        errors.quota_exceeded("TOO_MANY_STORIES", "studio-a", "more than 3", limit=3, retry_seconds=2),
        C.RESOURCE_EXHAUSTED,
        {"QuotaFailure", "RetryInfo"},
    ),
    (errors.quota_exceeded("STORAGE_FULL", "studio-a", "3 MiB", limit=3), C.RESOURCE_EXHAUSTED, {"QuotaFailure"}),
    (errors.queue_full(7, 2.5), C.RESOURCE_EXHAUSTED, {"QuotaFailure", "RetryInfo"}),
    (errors.deadline_unmeetable(12.34, 5), C.DEADLINE_EXCEEDED, set()),
    (errors.out_of_memory("does not fit; ask for fewer frames"), C.RESOURCE_EXHAUSTED, set()),
    (errors.starting(), C.UNAVAILABLE, {"RetryInfo"}),
    (errors.draining(), C.UNAVAILABLE, {"RetryInfo"}),
    (errors.engine_restarting(), C.UNAVAILABLE, {"RetryInfo"}),
    (errors.story_failed("STORY_DIVERGED", "not finite"), C.INTERNAL, set()),
    (errors.safety_check_failed("words"), C.INTERNAL, set()),
]


def details(status: status_pb2.Status) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for packed in status.details:
        name = packed.type_url.rsplit(".", 1)[1]
        assert name not in found, f"{name} is there twice"
        found[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(found[name])
    return found


@pytest.mark.parametrize(("error", "code", "kinds"), TABLE, ids=lambda value: getattr(value, "reason", None))
def test_each_error_has_its_code_and_details(error: StoryError, code: grpc.StatusCode, kinds: set[str]) -> None:
    status = error.status()
    assert (status.code, status.message) == (code.value[0], error.message)
    found = details(status)
    assert set(found) == {"ErrorInfo"} | kinds
    info = found["ErrorInfo"]
    assert info.domain == "storyloom.dev"
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", info.reason)


def test_details_say_what_programs_need() -> None:
    assert details(errors.deadline_unmeetable(12.34, 5).status())["ErrorInfo"].metadata["estimateMs"] == "12340"
    resource = details(errors.not_found("story", "s-1", "list the stories").status())["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == ("storyloom.dev/Story", "s-1")
    assert details(errors.queue_full(7, 2.5).status())["RetryInfo"].retry_delay.ToMilliseconds() == 2500


def aborted(error: StoryError) -> tuple[grpc.aio.AioRpcError, dict[str, Any]]:
    """``error`` as a client gets it."""

    async def handler(request: bytes, context: Any) -> bytes:
        await abort(context, error)

    async def body() -> grpc.aio.AioRpcError:
        server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler(handler)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Errors", {"Fail": method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                untyped: Any = channel
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await untyped.unary_unary("/test.Errors/Fail")(b"", timeout=30)
                return caught.value
        finally:
            await server.stop(0)

    caught = asyncio.run(body())
    trailers: Any = caught.trailing_metadata()
    return caught, dict(trailers)


@pytest.mark.parametrize(
    "error",
    [
        errors.invalid_story([Violation(f"story.frames[{index}].prompt", "x" * 300) for index in range(1000)]),
        errors.invalid_story([Violation("story.title", "模" * 5000)]),
        errors.not_found("character", "ü" * 100_000, "list the characters"),
        errors.request_id_reused("r" * 100_000),
    ],
    ids=lambda error: error.reason,
)
def test_errors_about_large_requests_still_fit_into_trailers(error: StoryError) -> None:
    caught, trailers = aborted(error)
    assert caught.code() is error.code
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = details(status)["ErrorInfo"]
    assert info.reason == error.reason
    if error.violations:
        assert info.metadata["violations"] == str(len(error.violations))
        assert details(status)["BadRequest"].field_violations


def test_a_call_without_a_token_is_told_the_scheme() -> None:
    _, trailers = aborted(errors.unauthenticated("TOKEN_MISSING", "send a token"))
    assert trailers["www-authenticate"] == 'Bearer realm="storyloom"'


@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=400)), min_size=1, max_size=200))
def test_a_status_is_never_large(violations: list[tuple[str, str]]) -> None:
    error = errors.invalid_story([Violation(path, message) for path, message in violations])
    assert len(error.status().SerializeToString()) < 8000
