"""Characters that a tenant keeps."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from storyloom_server.store import NewCharacter, characters, quotas
from storyloom_server.store.errors import NotFoundError, PageTokenError
from tests.server.journals import Server, TurnedClock


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    server = Server(database_url, TurnedClock())
    yield server
    server.database.close()


def new_character(name: str = "Ada", tenant: str = "tenant") -> NewCharacter:
    return NewCharacter(uuid.uuid4().hex, tenant, name, "a girl with a red scarf", b"\x00payload")


def test_character_is_kept_until_removed(server: Server) -> None:
    new = new_character()
    character = server(characters.create, new)
    assert server(characters.create, new) == character, "a repetition does nothing"
    assert (character.name, character.description, character.created_at) == ("Ada", new.description, 1_000_000.0)
    assert server(characters.get, new.id, "tenant") == character
    assert server(characters.payload, new.id, "tenant") == b"\x00payload"
    assert server(quotas.usage, "tenant").size_bytes == 8
    changed = server(characters.change, replace(new, name="Ava", payload=b"new"))
    assert (changed.name, changed.created_at) == ("Ava", character.created_at)
    assert server(characters.payload, new.id, "tenant") == b"new"
    server(characters.remove, new.id, "tenant")
    for use in (characters.get, characters.payload, characters.remove):
        with pytest.raises(NotFoundError, match=f"no character {new.id}"):
            server(use, new.id, "tenant")
    with pytest.raises(NotFoundError):
        server(characters.change, new)


def test_other_tenants_characters_do_not_exist(server: Server) -> None:
    new = new_character()
    server(characters.create, new)
    for use in (characters.get, characters.payload, characters.remove):
        with pytest.raises(NotFoundError):
            server(use, new.id, "other")
    with pytest.raises(NotFoundError):
        server(characters.change, replace(new, tenant="other"))
    assert server(characters.get, new.id, "tenant").name == "Ada"


def test_characters_are_listed_page_by_page(server: Server) -> None:
    ids = {server(characters.create, new_character("Ada")).id for _ in range(5)}
    server(characters.create, new_character(tenant="other"))
    first = server(characters.list_characters, "tenant", size=3)
    rest = server(characters.list_characters, "tenant", size=3, token=first.next_token)
    assert {character.id for character in [*first.items, *rest.items]} == ids
    assert rest.next_token == ""
    with pytest.raises(PageTokenError):
        server(characters.list_characters, "other", size=3, token=first.next_token)
