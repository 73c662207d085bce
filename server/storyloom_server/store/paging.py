"""Key-set paging, newest first: a page token says where the page before ended.

A page stays right while rows come and go. The token is opaque to clients and carries a checksum over the list that it
belongs to; it is no secret and grants nothing, since every query is limited to its tenant anyway.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Table, tuple_

from storyloom_server.store.errors import PageTokenError
from storyloom_server.store.records import Page

Item = TypeVar("Item")
_CHECKSUM_BYTES = 9


def page(
    connection: Connection,
    query: Select[Any],
    table: Table,
    make: Callable[[Any], Item],
    *,
    name: Sequence[str],
    size: int,
    token: str,
) -> Page[Item]:
    """One page of ``query``, ordered by ``created_at`` and ``id`` of ``table``, which the query selects.

    Args:
        make: turns a row into an item.
        name: what the list is and how it is filtered; a token of another list is refused.
        size: rows at most, at least 1.
        token: ``next_token`` of the page before; "" for the first page.

    Raises:
        PageTokenError: the token is damaged or belongs to another list.
    """
    if size < 1:
        raise ValueError(f"a page needs at least 1 row, not {size}")
    order = tuple_(table.c.created_at, table.c.id)
    if token:
        query = query.where(order < tuple_(*_decode(token, name)))
    query = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(size + 1)
    rows = connection.execute(query).all()
    more = len(rows) > size
    rows = rows[:size]
    return Page([make(row) for row in rows], _encode(rows[-1].created_at, rows[-1].id, name) if more else "")


def _encode(created_at: float, row_id: str, name: Sequence[str]) -> str:
    place = json.dumps([created_at, row_id]).encode()
    return base64.urlsafe_b64encode(_checksum(place, name) + place).decode()


def _decode(token: str, name: Sequence[str]) -> tuple[float, str]:
    try:
        data = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise PageTokenError from error
    checksum, place = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    if checksum != _checksum(place, name):
        raise PageTokenError
    created_at, row_id = json.loads(place)
    return created_at, row_id


def _checksum(place: bytes, name: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps(list(name)).encode() + b"\0" + place).digest()[:_CHECKSUM_BYTES]
