"""Every error that clients see: its code, its stable reason, and what it says. See ``story_error`` for the form."""

from collections.abc import Callable, Mapping, Sequence

import grpc
from google.rpc import error_details_pb2

from storyloom_server.scheduler import Reason, Refused
from storyloom_server.store.errors import (
    NotFoundError,
    PageTokenError,
    QuotaExceededError,
    RequestMismatchError,
    StorageFullError,
    StoreError,
)
from storyloom_server.story_error import DOMAIN, StoryError, shortened
from storyloom_server.violations import Violation

CANCELLED = "STORY_CANCELLED"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
# Long enough for a place in a full queue to become free, short enough that a client does not give up.
_QUEUE_RETRY_SECONDS = 5.0
# Violations that the message itself lists; the details have all of them.
_LISTED = 3
_MAX_QUOTE = 64


def invalid_request(violations: Sequence[Violation]) -> StoryError:
    """The request has bad fields outside its story; all of them are listed."""
    return _bad_fields("INVALID_REQUEST", violations)


def undecodable() -> StoryError:
    """The request's bytes are no message of the method."""
    return StoryError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "UNDECODABLE_REQUEST",
        "the request's bytes are no message of this method; make the client's code from the server's protos",
    )


def invalid_story(violations: Sequence[Violation]) -> StoryError:
    """The request has bad fields; all of them are listed."""
    return _bad_fields("INVALID_STORY", violations)


def not_found(kind: str, name: str, hint: str) -> StoryError:
    """There is no such model, adapter, character or story.

    Args:
        kind: lower-case word for what was asked for, such as ``story``.
        name: as the client wrote it.
        hint: what to do, such as "list the characters for those that are there".
    """
    message = f"there is no {kind} {_quoted(name)}; {hint}"
    return StoryError(
        grpc.StatusCode.NOT_FOUND,
        f"{kind.upper()}_NOT_FOUND",
        message,
        metadata={kind: _quoted(name)},
        details=[
            error_details_pb2.ResourceInfo(
                resource_type=f"{DOMAIN}/{kind.capitalize()}", resource_name=_quoted(name), description=message
            )
        ],
    )


def request_id_reused(request_id: str) -> StoryError:
    """The id came before, with another request. (With the same request, the earlier answer is given again.)"""
    return StoryError(
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        f"request_id {_quoted(request_id)} belongs to an earlier, different request; give each request its own",
        metadata={"requestId": _quoted(request_id)},
    )


def failed_precondition(reason: str, subject: str, message: str) -> StoryError:
    """Something has to change first, and not in the request: a model has to be loaded, a story has to finish.

    Args:
        reason: the stable name.
        subject: what is in the wrong state, such as ``models/storyloom-mini``.
        message: what is wrong, and what to do.
    """
    return StoryError(
        grpc.StatusCode.FAILED_PRECONDITION,
        reason,
        message,
        metadata={"subject": subject},
        details=[
            error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(type=reason, subject=subject, description=message)
                ]
            )
        ],
    )


def unauthenticated(reason: str, message: str) -> StoryError:
    """The call brings no token, or none that is known. The trailer names the scheme, as HTTP's header of that name."""
    return StoryError(
        grpc.StatusCode.UNAUTHENTICATED,
        reason,
        message,
        trailers=(("www-authenticate", 'Bearer realm="storyloom"'),),
    )


def permission_denied(reason: str, tenant: str, message: str) -> StoryError:
    """The token is good, but not for this."""
    return StoryError(grpc.StatusCode.PERMISSION_DENIED, reason, message, metadata={"tenant": tenant})


def quota_exceeded(
    reason: str, tenant: str, message: str, *, limit: float, retry_seconds: float | None = None
) -> StoryError:
    """A tenant reached a limit of its own. With ``retry_seconds`` None, waiting alone does not help."""
    return _exhausted(
        reason, f"tenants/{tenant}", message, {"tenant": tenant, "limit": f"{limit:g}"}, retry_seconds=retry_seconds
    )


def queue_full(waiting: int, retry_seconds: float) -> StoryError:
    """As many stories wait as may wait."""
    return _exhausted(
        "QUEUE_FULL",
        "queue",
        f"{waiting} stories are waiting already; try again in {retry_seconds:g} s or on another server",
        {"waiting": str(waiting)},
        retry_seconds=retry_seconds,
    )


def deadline_unmeetable(estimate_seconds: float, left_seconds: float) -> StoryError:
    """The story would not be done in time, so it is not begun."""
    return StoryError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_UNMEETABLE",
        f"the story would take about {estimate_seconds:.1f} s and the call ends in {left_seconds:.1f} s; give it more "
        "time, or ask for fewer frames or steps",
        metadata={
            "estimateMs": str(round(estimate_seconds * 1000)),
            "leftMs": str(round(left_seconds * 1000)),
        },
    )


def out_of_memory(message: str) -> StoryError:
    """This story alone does not fit into the device's memory; it never will, as it is."""
    return StoryError(grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", message)


def safety_blocked(violations: Sequence[Violation]) -> StoryError:
    """The server's safety rules refuse the story's texts or references; each refused field is listed, not quoted."""
    return _bad_fields("SAFETY_BLOCKED", violations)


def picture_blocked(index: int, flags: Sequence[str]) -> StoryError:
    """A finished picture may not be shown."""
    return StoryError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "SAFETY_BLOCKED",
        f"the picture of frame {index} is refused here ({', '.join(flags)}); change its prompt or its seed",
        metadata={"frame": str(index), "flags": ", ".join(flags)},
    )


def safety_check_failed(check: str) -> StoryError:
    """A safety check broke down, and what it cannot check is not made."""
    return StoryError(
        grpc.StatusCode.INTERNAL,
        "SAFETY_CHECK_FAILED",
        f"the safety check {check} failed, and without it nothing is made here; the server's log tells why",
        metadata={"check": check},
    )


def starting() -> StoryError:
    """The model is not loaded yet."""
    return _unavailable("STARTING", "the server is loading its models; try again soon", retry_seconds=2.0)


def draining() -> StoryError:
    """The server is about to stop."""
    return _unavailable("DRAINING", "the server is shutting down; try another server", retry_seconds=1.0)


def engine_restarting() -> StoryError:
    """The engine process died a moment ago."""
    return _unavailable("ENGINE_RESTARTING", "the engine is starting again; try again soon", retry_seconds=2.0)


def engine_crashed(crashes: int) -> StoryError:
    """The engine process died again and again while it made this story."""
    return StoryError(
        grpc.StatusCode.INTERNAL,
        "ENGINE_CRASHED",
        f"the engine process died {crashes} times while it made this story; change the story before sending it again",
        metadata={"crashes": str(crashes)},
    )


def references_crashed(crashes: int) -> StoryError:
    """The engine process died again and again while it encoded the same references."""
    return StoryError(
        grpc.StatusCode.INTERNAL,
        "ENCODER_CRASHED",
        f"the engine process died {crashes} times while it encoded these references; send other pictures",
        metadata={"crashes": str(crashes)},
    )


def references_outdated(story_id: str) -> StoryError:
    """The model's encoders are others by now, and the pictures that the story was made with are not kept."""
    return failed_precondition(
        "REFERENCES_OUTDATED",
        f"stories/{story_id}",
        "the model's encoders have changed since this story was made; make it anew, with its references",
    )


def references_not_taken(model: str, others: Sequence[str]) -> StoryError:
    """The model's package has identity adapters, and what runs it has no encoders for them."""
    use = f"use {' or '.join(others)}" if others else "no model here does"
    return failed_precondition(
        "REFERENCES_NOT_TAKEN",
        f"models/{model}",
        f"{model} takes no references as it is run here; {use}, or set settings.identity_adapter to none",
    )


def story_moved() -> StoryError:
    """Another server has taken the story over."""
    return _unavailable(
        "STORY_MOVED", "another server works on this story now; watch it again to go on", retry_seconds=1.0
    )


def story_cancelled() -> StoryError:
    """Somebody cancelled the story."""
    return StoryError(grpc.StatusCode.CANCELLED, CANCELLED, "the story was cancelled")


def story_not_finished(story_id: str, state: str) -> StoryError:
    """Only a finished story has frames to go on from."""
    return failed_precondition(
        "STORY_NOT_FINISHED", f"stories/{story_id}", f"the story is {state}; wait until it is finished"
    )


def refused(refusal: Refused, *, open_stories: int, left_seconds: float | None) -> StoryError:
    """The story is not accepted now."""
    retry = max(0.1, refusal.retry_seconds) if refusal.retry_seconds is not None else _QUEUE_RETRY_SECONDS
    match refusal.reason:
        case Reason.TOO_LARGE:
            return out_of_memory("the story is too large for the device; ask for fewer frames or smaller pictures")
        case Reason.DEADLINE:
            return deadline_unmeetable(refusal.estimated_seconds or 0.0, left_seconds or 0.0)
        case _:
            return queue_full(open_stories, retry)


def from_store(error: StoreError, tenant: str) -> StoryError:
    """What the store said to a call of ``tenant``, as clients see it."""
    match error:
        case NotFoundError():
            return not_found(error.what, error.name, "it never was, or its time to be kept is over")
        case RequestMismatchError():
            return request_id_reused(error.request_id)
        case QuotaExceededError():
            return quota_exceeded(
                "QUOTA_EXCEEDED", tenant, str(error), limit=error.limit, retry_seconds=_QUEUE_RETRY_SECONDS
            )
        case PageTokenError():
            return invalid_request([Violation("page_token", str(error))])
        case StorageFullError():
            return _unavailable("STORAGE_FULL", "the server's storage is full; try another server", retry_seconds=30.0)
        case _:
            return _unavailable("STORE_UNAVAILABLE", "the server's store does not answer; try again", retry_seconds=2.0)


def storage_damaged() -> StoryError:
    """What was made of a story before a restart cannot be read any more."""
    return StoryError(
        grpc.StatusCode.DATA_LOSS,
        "STORAGE_DAMAGED",
        "the server's storage has lost a part of this story; send it again with a new request_id",
    )


def job_failed(reason: str, message: str) -> StoryError:
    """The engine gave this story up."""
    if reason == "OUT_OF_MEMORY":
        return out_of_memory(message)
    if reason == DEADLINE_EXCEEDED:
        return StoryError(grpc.StatusCode.DEADLINE_EXCEEDED, DEADLINE_EXCEEDED, message)
    if reason == "STORY_UNSUITABLE":
        return StoryError(grpc.StatusCode.FAILED_PRECONDITION, reason, message)
    return story_failed(reason, message)


def story_failed(reason: str, message: str) -> StoryError:
    """This story alone went wrong in the engine."""
    return StoryError(grpc.StatusCode.INTERNAL, reason, message)


def _unavailable(reason: str, message: str, *, retry_seconds: float) -> StoryError:
    return StoryError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_seconds=retry_seconds)


def _exhausted(
    reason: str, subject: str, message: str, metadata: Mapping[str, str], *, retry_seconds: float | None
) -> StoryError:
    wait = {} if retry_seconds is None else {"retrySeconds": f"{retry_seconds:g}"}
    failure = error_details_pb2.QuotaFailure(
        violations=[error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)]
    )
    return StoryError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        message,
        metadata={**metadata, **wait},
        retry_seconds=retry_seconds,
        details=[failure],
    )


def relocated(error: StoryError, locate: Callable[[Violation], Violation]) -> StoryError:
    """The same error with its violations where ``locate`` sees them; one without violations as it is."""
    return _bad_fields(error.reason, [locate(each) for each in error.violations]) if error.violations else error


def _bad_fields(reason: str, violations: Sequence[Violation]) -> StoryError:
    listed = "; ".join(f"{violation.path}: {violation.message}" for violation in violations[:_LISTED])
    more = f"; and {len(violations) - _LISTED} more" if len(violations) > _LISTED else ""
    return StoryError(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{listed}{more}",
        metadata={"violations": str(len(violations))},
        violations=violations,
    )


def _quoted(name: str) -> str:
    """A client's name for something, short enough for a message."""
    return shortened(name, _MAX_QUOTE)
