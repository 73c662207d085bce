"""What tenants have, and may have."""

from sqlalchemy import func, select

from storyloom_server.store import tables
from storyloom_server.store.database import Transaction
from storyloom_server.store.errors import QuotaExceededError
from storyloom_server.store.records import Quota, Usage

_story = tables.story.c
_character = tables.character.c
_features = tables.features.c


def usage(transaction: Transaction, tenant: str) -> Usage:
    """What the tenant has."""
    stories = transaction.connection.execute(
        select(
            func.count().label("stories"),
            func.count().filter(_story.finished_at.is_(None)).label("open_stories"),
            func.coalesce(func.sum(_story.size_bytes), 0).label("size_bytes"),
        ).where(_story.tenant == tenant)
    ).one()
    characters = transaction.connection.execute(
        select(func.coalesce(func.sum(func.length(_character.payload)), 0)).where(_character.tenant == tenant)
    ).scalar_one()
    # Those of stories are in their sizes.
    features = transaction.connection.execute(
        select(func.coalesce(func.sum(_features.size_bytes), 0)).where(
            _features.tenant == tenant, _features.character_id.is_not(None)
        )
    ).scalar_one()
    size_bytes = int(stories.size_bytes) + int(characters) + int(features)
    return Usage(size_bytes, stories.stories, stories.open_stories)


def check(transaction: Transaction, tenant: str, quota: Quota) -> None:
    """Whether the tenant may have one story more.

    Raises:
        QuotaExceededError: it has as much as it may have.
    """
    if quota == Quota():
        return
    used = usage(transaction, tenant)
    if quota.open_stories is not None and used.open_stories >= quota.open_stories:
        raise QuotaExceededError("open_stories", used.open_stories, quota.open_stories)
    if quota.size_bytes is not None and used.size_bytes >= quota.size_bytes:
        raise QuotaExceededError("size_bytes", used.size_bytes, quota.size_bytes)
