"""Who works on which open story: leases that run out when a server dies, and taking over its stories."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import and_, case, or_, select, true, update

from storyloom_server.store import tables
from storyloom_server.store.database import Transaction
from storyloom_server.store.records import Renewal, Story, StoryState
from storyloom_server.store.rows import STORY_COLUMNS, make_story

_story = tables.story.c
_is_open = _story.finished_at.is_(None)


def renew(transaction: Transaction, running: Collection[str]) -> Renewal:
    """Keeps the stories that this server works on for another lease.

    Args:
        running: ids of all open stories that this server knows.

    Returns:
        Which of them are no longer its own, and which somebody wants cancelled.
    """
    kept = transaction.connection.execute(
        update(tables.story)
        .where(_story.id.in_(running), _story.life == transaction.owner.life, _is_open)
        .values(lease_until=transaction.now + transaction.lease_seconds)
        .returning(_story.id, _story.cancel_requested)
    ).all()
    return Renewal(
        lost=frozenset(running) - {row.id for row in kept},
        cancelled=frozenset(row.id for row in kept if row.cancel_requested),
    )


def adopt(
    transaction: Transaction, running: Collection[str] = (), *, models: Collection[str] | None = None, limit: int = 100
) -> Sequence[Story]:
    """Takes over open stories that nobody works on: of earlier lives of this server, and with leases that ran out.

    A story whose owner died while the engine worked on it counts one crash more. Servers that adopt at the same time
    get different stories.

    Args:
        running: ids of all open stories that this server knows; they are left out.
        models: those that this server serves; stories of others are left to other servers. None: any model.
        limit: stories at most; where as many come back, more may be left.

    Returns:
        The stories, oldest first, queued again. Number their events on from ``sequence_reserved``.
    """
    left_behind = and_(_story.replica == transaction.owner.replica, _story.life != transaction.owner.life)
    served = true() if models is None else _story.model.in_(models)
    found = transaction.connection.execute(
        select(_story.id)
        .where(_is_open, served, or_(left_behind, _story.lease_until <= transaction.now), _story.id.not_in(running))
        .order_by(_story.created_at, _story.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).scalars()
    died_running = case((_story.state == StoryState.RUNNING, 1), else_=0)
    adopted = transaction.connection.execute(
        update(tables.story)
        .where(_story.id.in_(found.all()))
        .values(
            state=StoryState.QUEUED,
            replica=transaction.owner.replica,
            life=transaction.owner.life,
            lease_until=transaction.now + transaction.lease_seconds,
            crashes=_story.crashes + died_running,
        )
        .returning(*STORY_COLUMNS)
    )
    return sorted(map(make_story, adopted), key=lambda story: (story.created_at, story.id))


def release(transaction: Transaction) -> None:
    """Leaves all open stories of this server to whoever adopts them first: it is about to stop."""
    transaction.connection.execute(
        update(tables.story)
        .where(_story.life == transaction.owner.life, _is_open)
        .values(state=StoryState.QUEUED, lease_until=0.0, life="")
    )


def count_crash(transaction: Transaction, story_ids: Collection[str]) -> Mapping[str, int]:
    """The engine died while it worked on these stories of this server.

    Returns:
        How often that has happened to each of them.
    """
    counted = transaction.connection.execute(
        update(tables.story)
        .where(_story.id.in_(story_ids), _story.life == transaction.owner.life, _is_open)
        .values(crashes=_story.crashes + 1, state=StoryState.QUEUED)
        .returning(_story.id, _story.crashes)
    )
    return {row.id: row.crashes for row in counted}
