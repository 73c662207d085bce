"""The life of a story in the database, from its acceptance to its end. Every function is one step of a transaction.

What a server does to a story it may do only while it owns it: a server that was thought dead finds out here, before it
can add an event to a story that another one has taken over. All functions may be called again after an error, also when
the first call was stored and only its answer was lost.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Update, and_, bindparam, case, delete, func, insert, select, update

from storyloom_server.store import features, quotas, tables
from storyloom_server.store.database import Transaction, insert_new
from storyloom_server.store.errors import NotFoundError, RequestMismatchError, SequenceError, StoryLostError
from storyloom_server.store.paging import page
from storyloom_server.store.records import (
    Accepted,
    Artifact,
    ArtifactKind,
    Event,
    NewEvent,
    NewStory,
    Page,
    Quota,
    Story,
    StoryState,
)
from storyloom_server.store.rows import STORY_COLUMNS, make_story

_story = tables.story.c
_event = tables.event.c
_artifact = tables.artifact.c

# What runs for every event is built once; building a statement takes longer than running it on SQLite.
_READ = select(*STORY_COLUMNS).where(_story.id == bindparam("story"))
_OWN_STORY = (
    update(tables.story)
    .where(_story.id == bindparam("story"), _story.life == bindparam("owner"), _story.finished_at.is_(None))
    .values(updated_at=bindparam("now"))
)
_BEGIN = _OWN_STORY.values(state=StoryState.RUNNING.value)
_RESERVE = _OWN_STORY.values(
    sequence_reserved=case(
        (_story.sequence_reserved < bindparam("upto"), bindparam("upto")), else_=_story.sequence_reserved
    )
)
_GROW = _OWN_STORY.values(size_bytes=_story.size_bytes + bindparam("more"))
_GROW_AND_RESERVE = _RESERVE.values(size_bytes=_story.size_bytes + bindparam("more"))
_LAST_EVENT = select(func.max(_event.sequence)).where(_event.story_id == bindparam("story"))
_EVENTS = (
    select(_event.sequence, _event.payload, _event.picture)
    .where(_event.story_id == bindparam("story"), _event.sequence > bindparam("after"))
    .order_by(_event.sequence)
    .limit(bindparam("most"))
)


def accept(transaction: Transaction, new: NewStory, quota: Quota | None = None) -> Accepted:
    """Takes a story; it is this server's to work on. A request that was accepted before gives the story it became.

    Args:
        new: the story; ``id`` is a fresh random one.
        quota: what the tenant may have. Servers that accept at the same moment may exceed it by a story each.

    Raises:
        RequestMismatchError: ``request_id`` was used for a request with another digest.
        QuotaExceededError: the tenant has as much as it may have.
    """
    existing = _accepted_before(transaction, new)
    if existing is not None:
        return existing
    if quota is not None:
        quotas.check(transaction, new.tenant, quota)
    values = {
        "id": new.id,
        "tenant": new.tenant,
        "request_id": new.request_id,
        "request_digest": new.request_digest,
        "title": new.title,
        "model": new.model,
        "state": StoryState.QUEUED,
        "frames": new.frames,
        "priority": new.priority,
        "deadline_at": new.deadline_at,
        "parent_id": new.parent_id,
        "created_at": transaction.now,
        "updated_at": transaction.now,
        "expires_at": new.expires_at,
        "replica": transaction.owner.replica,
        "life": transaction.owner.life,
        "lease_until": transaction.now + transaction.lease_seconds,
        "crashes": 0,
        "sequence_reserved": 0,
        "cancel_requested": False,
        "size_bytes": len(new.request) + sum(len(each.features.data) for each in new.features),
        "request": new.request,
    }
    if not insert_new(transaction.connection, tables.story, values):
        # Another server was faster with the same request, or an earlier call was stored after all.
        existing = _accepted_before(transaction, new)
        if existing is not None:
            return existing
    features.keep_with_story(transaction, new.id, new.tenant, new.features)
    return Accepted(_read(transaction, new.id), existing=False)


def get(transaction: Transaction, story_id: str, tenant: str) -> Story:
    """The tenant's story.

    Raises:
        NotFoundError: the tenant has no such story.
    """
    story = _read(transaction, story_id)
    if story.tenant != tenant:
        raise NotFoundError("story", story_id)
    return story


def find_request(transaction: Transaction, tenant: str, request_id: str, request_digest: str) -> Story | None:
    """The story that an earlier request with the same ``request_id`` became; None when there was none.

    Raises:
        RequestMismatchError: ``request_id`` was used for a request with another digest.
    """
    row = transaction.connection.execute(
        select(*STORY_COLUMNS, _story.request_digest).where(_story.tenant == tenant, _story.request_id == request_id)
    ).first()
    if row is None:
        return None
    if row.request_digest != request_digest:
        raise RequestMismatchError(request_id, row.id)
    return make_story(row)


def request(transaction: Transaction, story_id: str) -> bytes:
    """The request of a story, as it was accepted.

    Raises:
        NotFoundError: there is no such story.
    """
    stored: bytes | None = transaction.connection.execute(
        select(_story.request).where(_story.id == story_id)
    ).scalar_one_or_none()
    if stored is None:
        raise NotFoundError("story", story_id)
    return stored


def list_stories(
    transaction: Transaction, tenant: str, *, state: StoryState | None = None, size: int, token: str = ""
) -> Page[Story]:
    """A page of the tenant's stories, newest first, perhaps only those in ``state``.

    Raises:
        PageTokenError: ``token`` is not from an earlier page of the same list.
    """
    query = select(*STORY_COLUMNS).where(_story.tenant == tenant)
    if state is not None:
        query = query.where(_story.state == state)
    name = ("stories", tenant, state or "")
    return page(transaction.connection, query, tables.story, make_story, name=name, size=size, token=token)


def begin(transaction: Transaction, story_id: str) -> None:
    """The engine has begun to work on the story.

    Raises:
        StoryLostError: it is no longer this server's.
    """
    _change(transaction, story_id, _BEGIN)


def reserve(transaction: Transaction, story_id: str, upto: int) -> None:
    """Clients may from now on see event numbers up to ``upto``, of events that are not stored themselves.

    Raises:
        StoryLostError: it is no longer this server's.
    """
    _change(transaction, story_id, _RESERVE, upto=upto)


def append(transaction: Transaction, story_id: str, events: Sequence[NewEvent], *, reserve: int = 0) -> None:
    """Stores events, and the artifacts that are their pictures. Events that are stored already are left as they are.

    Args:
        events: at least one, numbers rising.
        reserve: reserves numbers up to this one too.

    Raises:
        StoryLostError: the story is no longer this server's.
        SequenceError: a number is not above all numbers stored before, or stored with another event.
    """
    numbers = [event.sequence for event in events]
    if not numbers or numbers[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise SequenceError(f"event numbers must rise from 1 or more; these are {numbers}")
    size = sum(map(_event_size, events))
    _change(transaction, story_id, _GROW_AND_RESERVE, upto=max(reserve, numbers[-1]), more=size)
    last: int = transaction.connection.execute(_LAST_EVENT, {"story": story_id}).scalar_one() or 0
    if numbers[0] <= last:
        stored, events = _split(transaction, story_id, events, last)
        _change(transaction, story_id, _GROW, more=-sum(map(_event_size, stored)))
    if pictures := [event.picture for event in events if event.picture is not None]:
        rows = [_artifact_values(story_id, picture) for picture in pictures]
        transaction.connection.execute(insert(tables.artifact), rows)
    if events:
        transaction.connection.execute(insert(tables.event), [_event_values(story_id, event) for event in events])


def events(transaction: Transaction, story_id: str, *, after: int = 0, limit: int = 100) -> Sequence[Event]:
    """The stored events of a story with numbers above ``after``, in order. No check of the tenant: ``get`` does it."""
    rows = transaction.connection.execute(_EVENTS, {"story": story_id, "after": after, "most": limit})
    return [Event(row.sequence, row.payload, row.picture) for row in rows]


def keep(transaction: Transaction, story_id: str, artifact: Artifact) -> Sequence[str]:
    """Notes an artifact, such as a checkpoint, in place of the one of the same kind and position.

    Returns:
        Keys of the blobs that it replaces, to be deleted once this transaction is stored.

    Raises:
        StoryLostError: it is no longer this server's.
    """
    _change(transaction, story_id, _OWN_STORY)
    replaced = transaction.connection.execute(
        delete(tables.artifact)
        .where(
            _artifact.story_id == story_id,
            _artifact.kind == artifact.kind,
            _artifact.position == artifact.position,
            _artifact.key != artifact.key,
        )
        .returning(_artifact.key, _artifact.size_bytes)
    ).all()
    values = _artifact_values(story_id, artifact)
    added = artifact.size_bytes if insert_new(transaction.connection, tables.artifact, values) else 0
    _change(transaction, story_id, _GROW, more=added - sum(row.size_bytes for row in replaced))
    return [row.key for row in replaced]


def artifacts(transaction: Transaction, story_id: str, kind: ArtifactKind) -> Sequence[Artifact]:
    """The story's artifacts of one kind, by position."""
    query = (
        select(_artifact.key, _artifact.position, _artifact.size_bytes)
        .where(_artifact.story_id == story_id, _artifact.kind == kind)
        .order_by(_artifact.position, _artifact.key)
    )
    return [Artifact(row.key, kind, row.position, row.size_bytes) for row in transaction.connection.execute(query)]


def finish(
    transaction: Transaction,
    story_id: str,
    state: StoryState,
    *,
    events: Sequence[NewEvent] = (),
    error: bytes | None = None,
    summary: bytes | None = None,
) -> None:
    """Ends a story, with its last events.

    Args:
        state: one of the ended states.
        error: a serialised ``google.rpc.Status``.
        summary: what is told about the story once it has ended.

    Raises:
        StoryLostError: it is no longer this server's, or ended otherwise.
        SequenceError: as for ``append``.
    """
    if state.is_open:
        raise ValueError(f"a story does not end as {state}")
    ended_so = and_(_story.id == story_id, _story.life == transaction.owner.life, _story.state == state)
    if transaction.connection.execute(select(_story.id).where(ended_so)).first() is not None:
        return  # An earlier call was stored after all.
    if events:
        append(transaction, story_id, events)
    values = {"state": state, "error": error, "summary": summary, "finished_at": transaction.now}
    _change(transaction, story_id, _OWN_STORY.values(values))


def request_cancel(transaction: Transaction, story_id: str, tenant: str) -> Story:
    """Asks the story's owner to cancel it, which it finds out by ``leases.renew``. Ended stories stay as they are.

    Raises:
        NotFoundError: the tenant has no such story.
    """
    transaction.connection.execute(
        update(tables.story)
        .where(_story.id == story_id, _story.tenant == tenant, _story.finished_at.is_(None))
        .values(cancel_requested=True, updated_at=transaction.now)
    )
    return get(transaction, story_id, tenant)


def _read(transaction: Transaction, story_id: str) -> Story:
    row = transaction.connection.execute(_READ, {"story": story_id}).first()
    if row is None:
        raise NotFoundError("story", story_id)
    return make_story(row)


def _accepted_before(transaction: Transaction, new: NewStory) -> Accepted | None:
    if new.request_id is None:
        return None
    story = find_request(transaction, new.tenant, new.request_id, new.request_digest)
    return None if story is None else Accepted(story, existing=story.id != new.id)


def _change(transaction: Transaction, story_id: str, change: Update, **values: int) -> None:
    """Runs ``change``, made from ``_OWN_STORY``, on an open story of this server; its row is locked from then on.

    Raises:
        StoryLostError: it is not open, or not this server's.
    """
    own = {"story": story_id, "owner": transaction.owner.life, "now": transaction.now}
    if transaction.connection.execute(change, own | values).rowcount:
        return
    row = transaction.connection.execute(select(_story.state).where(_story.id == story_id)).first()
    if row is None:
        raise StoryLostError(story_id, "is no longer stored")
    is_open = StoryState(row.state).is_open
    raise StoryLostError(story_id, "belongs to another server by now" if is_open else f"has ended ({row.state})")


def _split(
    transaction: Transaction, story_id: str, events: Sequence[NewEvent], last: int
) -> tuple[Sequence[NewEvent], Sequence[NewEvent]]:
    """The events that are stored already, just so, and those that are new.

    Raises:
        SequenceError: an event up to number ``last``, the last one stored, is another one or none.
    """
    old = [event for event in events if event.sequence <= last]
    query = select(_event.sequence, _event.payload, _event.picture).where(
        _event.story_id == story_id, _event.sequence.in_([event.sequence for event in old])
    )
    stored = {row.sequence: (row.payload, row.picture) for row in transaction.connection.execute(query)}
    for event in old:
        if stored.get(event.sequence) != (event.payload, event.picture.key if event.picture else None):
            raise SequenceError(
                f"event {event.sequence} of story {story_id} is not above {last}, the last one stored; "
                "number events on from there"
            )
    return old, events[len(old) :]


def _event_size(event: NewEvent) -> int:
    return len(event.payload) + (event.picture.size_bytes if event.picture is not None else 0)


def _event_values(story_id: str, event: NewEvent) -> dict[str, Any]:
    return {
        "story_id": story_id,
        "sequence": event.sequence,
        "payload": event.payload,
        "picture": event.picture.key if event.picture is not None else None,
    }


def _artifact_values(story_id: str, artifact: Artifact) -> dict[str, Any]:
    return {
        "key": artifact.key,
        "story_id": story_id,
        "kind": artifact.kind,
        "position": artifact.position,
        "size_bytes": artifact.size_bytes,
    }
