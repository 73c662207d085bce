"""Characters that tenants keep for later stories. Names need not be unique; ids are."""

from sqlalchemy import delete, select, update

from storyloom_server.store import tables
from storyloom_server.store.database import Transaction, insert_new
from storyloom_server.store.errors import NotFoundError
from storyloom_server.store.paging import page
from storyloom_server.store.records import Character, NewCharacter, Page
from storyloom_server.store.rows import CHARACTER_COLUMNS, make_character

_character = tables.character.c


def create(transaction: Transaction, new: NewCharacter) -> Character:
    """Keeps a character; ``id`` is a fresh random one. Calling it again does nothing."""
    values = {
        "id": new.id,
        "tenant": new.tenant,
        "name": new.name,
        "description": new.description,
        "created_at": transaction.now,
        "payload": new.payload,
    }
    insert_new(transaction.connection, tables.character, values)
    return get(transaction, new.id, new.tenant)


def get(transaction: Transaction, character_id: str, tenant: str) -> Character:
    """The tenant's character.

    Raises:
        NotFoundError: the tenant has no such character.
    """
    row = transaction.connection.execute(
        select(*CHARACTER_COLUMNS).where(_character.id == character_id, _character.tenant == tenant)
    ).first()
    if row is None:
        raise NotFoundError("character", character_id)
    return make_character(row)


def payload(transaction: Transaction, character_id: str, tenant: str) -> bytes:
    """What the character was created with.

    Raises:
        NotFoundError: the tenant has no such character.
    """
    stored: bytes | None = transaction.connection.execute(
        select(_character.payload).where(_character.id == character_id, _character.tenant == tenant)
    ).scalar_one_or_none()
    if stored is None:
        raise NotFoundError("character", character_id)
    return stored


def list_characters(transaction: Transaction, tenant: str, *, size: int, token: str = "") -> Page[Character]:
    """A page of the tenant's characters, newest first.

    Raises:
        PageTokenError: ``token`` is not from an earlier page of the same list.
    """
    query = select(*CHARACTER_COLUMNS).where(_character.tenant == tenant)
    name = ("characters", tenant)
    return page(transaction.connection, query, tables.character, make_character, name=name, size=size, token=token)


def change(transaction: Transaction, new: NewCharacter) -> Character:
    """Gives a kept character another name, description and payload, and forgets what was encoded of its references.
    Stories keep what they were accepted with.

    Raises:
        NotFoundError: the tenant has no such character.
    """
    transaction.connection.execute(
        update(tables.character)
        .where(_character.id == new.id, _character.tenant == new.tenant)
        .values(name=new.name, description=new.description, payload=new.payload)
    )
    changed = get(transaction, new.id, new.tenant)
    transaction.connection.execute(delete(tables.features).where(tables.features.c.character_id == new.id))
    return changed


def remove(transaction: Transaction, character_id: str, tenant: str) -> None:
    """Forgets a character.

    Raises:
        NotFoundError: the tenant has no such character.
    """
    get(transaction, character_id, tenant)
    transaction.connection.execute(
        delete(tables.character).where(_character.id == character_id, _character.tenant == tenant)
    )
