"""What may be deleted. Rows go first, their blobs after them: a blob without a row is found later, by ``unknown``."""

from collections.abc import Collection, Sequence

from sqlalchemy import and_, bindparam, delete, func, or_, select

from storyloom_server.store import tables
from storyloom_server.store.database import Transaction
from storyloom_server.store.records import ArtifactKind, EndedStory

_story = tables.story.c
_artifact = tables.artifact.c
_has_ended = _story.finished_at.is_not(None)

MOST_KEYS = 500
_KNOWN = select(_artifact.key).where(_artifact.key.in_(bindparam("keys", expanding=True)))


def expired(transaction: Transaction, keep_seconds: float, *, limit: int = 100) -> Sequence[str]:
    """Ended stories whose time is over: their own, or ``keep_seconds`` after their end where they have none."""
    own = and_(_story.expires_at.is_not(None), _story.expires_at <= transaction.now)
    general = and_(_story.expires_at.is_(None), _story.finished_at <= transaction.now - keep_seconds)
    query = select(_story.id).where(_has_ended, or_(own, general)).order_by(_story.finished_at).limit(limit)
    return transaction.connection.execute(query).scalars().all()


def tenants_above(transaction: Transaction, size_bytes: int) -> Sequence[tuple[str, int]]:
    """Tenants whose stories are larger than ``size_bytes`` together, and how large."""
    total = func.sum(_story.size_bytes)
    query = select(_story.tenant, total).group_by(_story.tenant).having(total > size_bytes)
    return [(tenant, int(size)) for tenant, size in transaction.connection.execute(query)]


def ended(transaction: Transaction, tenant: str, *, limit: int = 1000) -> Sequence[EndedStory]:
    """The tenant's ended stories, oldest first."""
    query = (
        select(_story.id, _story.size_bytes)
        .where(_story.tenant == tenant, _has_ended)
        .order_by(_story.finished_at, _story.id)
        .limit(limit)
    )
    return [EndedStory(row.id, row.size_bytes) for row in transaction.connection.execute(query)]


def forget(transaction: Transaction, story_id: str) -> Sequence[str]:
    """Deletes an ended story with all that belongs to it. An open or unknown story stays as it is.

    Returns:
        Keys of the blobs that may be deleted once this transaction is stored.
    """
    has_ended = select(_story.id).where(_story.id == story_id, _has_ended)
    keys = (
        transaction.connection.execute(select(_artifact.key).where(_artifact.story_id.in_(has_ended))).scalars().all()
    )
    transaction.connection.execute(delete(tables.story).where(_story.id == story_id, _has_ended))
    return keys


def drop_checkpoints(transaction: Transaction, *, limit: int = 100) -> Sequence[str]:
    """Deletes the rows of checkpoints of ended stories, and of what their rounds show, which nobody needs any more.

    Returns:
        Keys of the blobs that may be deleted once this transaction is stored.
    """
    some = (
        select(_artifact.key)
        .join(tables.story, _story.id == _artifact.story_id)
        .where(_artifact.kind.in_((ArtifactKind.CHECKPOINT, ArtifactKind.REFERENCE)), _has_ended)
        .limit(limit)
    )
    deleted = delete(tables.artifact).where(_artifact.key.in_(some.scalar_subquery())).returning(_artifact.key)
    return transaction.connection.execute(deleted).scalars().all()


def unknown(transaction: Transaction, keys: Collection[str]) -> frozenset[str]:
    """Those of the keys, at most ``MOST_KEYS``, that no artifact has."""
    # Always the same number: drivers keep a prepared statement for each number of parameters.
    filled = [*keys, *[""] * (MOST_KEYS - len(keys))]
    return frozenset(keys) - set(transaction.connection.execute(_KNOWN, {"keys": filled}).scalars())
