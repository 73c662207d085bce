"""What encoders made of reference pictures. It is kept with what needs it, a story or a character, and goes with it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from storyloom_server.store import tables
from storyloom_server.store.database import Transaction, insert_new
from storyloom_server.store.errors import NotFoundError
from storyloom_server.store.records import Features, StoryFeatures

_features = tables.features.c
_character = tables.character.c


def keep_with_story(transaction: Transaction, story_id: str, tenant: str, kept: Iterable[StoryFeatures]) -> None:
    """Keeps features of a story's characters. Calling it again does nothing."""
    for each in kept:
        values = {
            "id": f"{story_id}.{each.name}.{'blend' if each.blended else 'own'}",
            "tenant": tenant,
            "story_id": story_id,
            "name": each.name,
            "blended": each.blended,
        }
        insert_new(transaction.connection, tables.features, values | _values(each.features))


def keep_with_character(transaction: Transaction, character_id: str, tenant: str, features: Features) -> None:
    """Keeps features of a character, beside those of other encoders. Calling it again does nothing.

    Raises:
        NotFoundError: the tenant has no such character, perhaps no more.
    """
    # Locked on PostgreSQL, so that nobody deletes it meanwhile.
    owned = select(_character.id).where(_character.id == character_id, _character.tenant == tenant).with_for_update()
    if transaction.connection.execute(owned).first() is None:
        raise NotFoundError("character", character_id)
    values = {
        "id": f"{character_id}.{features.encoders}",
        "tenant": tenant,
        "character_id": character_id,
        "name": "",
        "blended": False,
    }
    insert_new(transaction.connection, tables.features, values | _values(features))


def of_story(transaction: Transaction, story_id: str) -> Sequence[StoryFeatures]:
    """Features of a story's characters. No check of the tenant: ``journal.get`` does it."""
    rows = transaction.connection.execute(
        select(tables.features).where(_features.story_id == story_id).order_by(_features.id)
    )
    return [StoryFeatures(row.name, row.blended, _make(row)) for row in rows]


def of_character(transaction: Transaction, character_id: str) -> Mapping[str, Sequence[str]]:
    """The encoders that a character's features are kept of, and what each noted of its references."""
    rows = transaction.connection.execute(
        select(_features.encoders, _features.notes).where(_features.character_id == character_id)
    )
    return {row.encoders: row.notes.splitlines() for row in rows}


def find(transaction: Transaction, tenant: str, digest: str, encoders: str) -> Features | None:
    """What the same encoders made of the same pictures before, as long as the tenant has it with anything."""
    row = transaction.connection.execute(
        select(tables.features)
        .where(_features.tenant == tenant, _features.digest == digest, _features.encoders == encoders)
        .limit(1)
    ).first()
    return None if row is None else _make(row)


def _make(row: Any) -> Features:
    return Features(row.digest, row.encoders, row.data, tuple(row.notes.splitlines()))


def _values(features: Features) -> dict[str, Any]:
    return {
        "digest": features.digest,
        "encoders": features.encoders,
        "size_bytes": len(features.data),
        "notes": "\n".join(features.notes),
        "data": features.data,
    }
