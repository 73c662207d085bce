"""What encoders made of references: found again by the same pictures, and gone with what it was kept for."""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom_server.store import (
    Features,
    NewCharacter,
    Quota,
    StoryFeatures,
    StoryState,
    characters,
    cleanup,
    features,
    journal,
    quotas,
)
from storyloom_server.store.errors import NotFoundError, QuotaExceededError
from tests.server.journals import Server, TurnedClock, new_story

MIA = Features("pictures", "encoders", b"\x00" * 1000, ("reference 1: 3 faces", "reference 2: blurred"))


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    server = Server(database_url, TurnedClock())
    yield server
    server.database.close()


def new_character(tenant: str = "tenant") -> NewCharacter:
    return NewCharacter(uuid.uuid4().hex, tenant, "mia", "a girl", b"payload")


def test_a_storys_features_come_and_go_with_it(server: Server) -> None:
    blended = Features("others", "encoders", b"\x01" * 500)
    kept = (StoryFeatures("mia", False, MIA), StoryFeatures("mia", True, blended))
    new = new_story(features=kept)
    accepted = server(journal.accept, new).story
    assert server(journal.accept, new).story == accepted, "a repetition does nothing"
    assert accepted.size_bytes == len(new.request) + 1500
    assert set(server(features.of_story, new.id)) == set(kept)
    assert server(features.find, "tenant", "pictures", "encoders") == MIA
    server(journal.finish, new.id, StoryState.FINISHED)
    server(cleanup.forget, new.id)
    assert server(features.of_story, new.id) == []
    assert server(features.find, "tenant", "pictures", "encoders") is None
    assert server(quotas.usage, "tenant").size_bytes == 0


def test_a_characters_features_come_and_go_with_it(server: Server) -> None:
    new = new_character()
    server(characters.create, new)
    for _ in range(2):
        server(features.keep_with_character, new.id, "tenant", MIA)
    server(features.keep_with_character, new.id, "tenant", Features("pictures", "newer", b"\x02"))
    assert server(features.of_character, new.id) == {"encoders": list(MIA.notes), "newer": []}
    assert server(quotas.usage, "tenant").size_bytes == len(b"payload") + 1001
    with pytest.raises(QuotaExceededError):
        server(journal.accept, new_story(), Quota(size_bytes=1000))
    story = new_story(features=(StoryFeatures("mia", False, MIA),))
    server(journal.accept, story)
    server(characters.remove, new.id, "tenant")
    assert server(features.of_character, new.id) == {}
    assert server(features.of_story, story.id)[0].features == MIA, "the story keeps its own"
    assert server(features.find, "tenant", "pictures", "newer") is None
    with pytest.raises(NotFoundError):
        server(features.keep_with_character, new.id, "tenant", MIA)


def test_a_changed_character_is_not_what_was_encoded(server: Server) -> None:
    new = new_character()
    server(characters.create, new)
    server(features.keep_with_character, new.id, "tenant", MIA)
    server(characters.change, new)
    assert server(features.of_character, new.id) == {}


def test_other_tenants_features_are_not_found(server: Server) -> None:
    new = new_character()
    server(characters.create, new)
    with pytest.raises(NotFoundError):
        server(features.keep_with_character, new.id, "other", MIA)
    server(features.keep_with_character, new.id, "tenant", MIA)
    assert server(features.find, "other", "pictures", "encoders") is None
    assert server(features.find, "tenant", "pictures", "others") is None
    assert server(quotas.usage, "other").size_bytes == 0


@given(data=st.binary(max_size=300), notes=st.lists(st.text("abc ,;:", min_size=1), max_size=3))
def test_features_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, notes: list[str]
) -> None:
    server = Server(f"sqlite:///{tmp_path_factory.getbasetemp() / 'features.db'}", TurnedClock())
    kept = StoryFeatures("bo", False, Features("pictures", "encoders", data, tuple(notes)))
    story = new_story(features=(kept,))
    server(journal.accept, story)
    assert server(features.of_story, story.id) == [kept]
    server.database.close()
