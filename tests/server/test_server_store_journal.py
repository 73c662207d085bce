"""The life of a story in the database: what is accepted stays, once, in order, and belongs to one server."""

from collections.abc import Iterator

import pytest

from storyloom_server.store import Artifact, ArtifactKind, Quota, StoryState, journal, leases, quotas
from storyloom_server.store.errors import (
    NotFoundError,
    PageTokenError,
    QuotaExceededError,
    RequestMismatchError,
    SequenceError,
    StoryLostError,
)
from tests.server.journals import LEASE_SECONDS, Server, TurnedClock, new_events, new_story

PICTURE = Artifact("stories/x/picture-0-1.aa", ArtifactKind.PICTURE, 0, 100)


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def server(database_url: str, clock: TurnedClock) -> Iterator[Server]:
    server = Server(database_url, clock)
    yield server
    server.database.close()


@pytest.fixture
def other(database_url: str, clock: TurnedClock, server: Server) -> Iterator[Server]:
    other = Server(database_url, clock, "b")
    yield other
    other.database.close()


def test_accepted_story_is_there_after_a_restart(server: Server) -> None:
    new = new_story(title="Fox", priority=3, deadline_at=1_000_060.5, parent_id="p", request_id="r")
    accepted = server(journal.accept, new)
    assert not accepted.existing
    after = server.restarted()
    story = after(journal.get, new.id, "tenant")
    assert story == accepted.story
    assert (story.title, story.priority, story.deadline_at, story.parent_id) == ("Fox", 3, 1_000_060.5, "p")
    assert (story.state, story.created_at, story.size_bytes) == (StoryState.QUEUED, 1_000_000.0, 5)
    assert after(journal.request, new.id) == b"a fox"
    after.database.close()


def test_same_request_gives_the_same_story(server: Server, other: Server) -> None:
    first = server(journal.accept, new_story(request_id="r"))
    for again in (server(journal.accept, new_story(request_id="r")), other(journal.accept, new_story(request_id="r"))):
        assert again.existing
        assert again.story == first.story
    assert not server(journal.accept, new_story("other tenant", request_id="r")).existing
    assert not server(journal.accept, new_story()).existing
    assert not server(journal.accept, new_story()).existing


def test_other_request_under_the_same_id_is_refused(server: Server) -> None:
    story = server(journal.accept, new_story(request_id="r")).story
    with pytest.raises(RequestMismatchError, match="request_id r") as caught:
        server(journal.accept, new_story(request=b"a bear", request_id="r"))
    assert caught.value.story_id == story.id


def test_acceptance_whose_answer_was_lost_can_be_repeated(server: Server) -> None:
    for new in (new_story(), new_story(request_id="r")):
        first = server(journal.accept, new)
        assert server(journal.accept, new) == first


def test_other_tenants_stories_do_not_exist(server: Server) -> None:
    story = server(journal.accept, new_story()).story
    for name, tenant in ((story.id, "other"), ("unknown", "tenant")):
        with pytest.raises(NotFoundError, match=f"no story {name}"):
            server(journal.get, name, tenant)
        with pytest.raises(NotFoundError):
            server(journal.request_cancel, name, tenant)
    assert not server(journal.get, story.id, "tenant").cancel_requested


def test_events_come_back_in_order_and_in_parts(server: Server) -> None:
    story_id = server(journal.accept, new_story()).story.id
    server(journal.append, story_id, new_events(1, 2, 7))
    server(journal.append, story_id, new_events(9), reserve=20)
    assert [event.sequence for event in server(journal.events, story_id)] == [1, 2, 7, 9]
    assert [event.sequence for event in server(journal.events, story_id, after=1, limit=2)] == [2, 7]
    assert server(journal.events, story_id, after=7)[0].payload == b"event 9"
    assert server(journal.get, story_id, "tenant").sequence_reserved == 20
    server(journal.reserve, story_id, 10)
    assert server(journal.get, story_id, "tenant").sequence_reserved == 20, "a reservation is never taken back"
    server(journal.reserve, story_id, 30)
    assert server(journal.get, story_id, "tenant").sequence_reserved == 30


def test_event_numbers_must_rise(server: Server) -> None:
    story_id = server(journal.accept, new_story()).story.id
    server(journal.append, story_id, new_events(3))
    for numbers in ((), (0,), (5, 5), (6, 5), (2,), (2, 4)):
        with pytest.raises(SequenceError):
            server(journal.append, story_id, new_events(*numbers))
    with pytest.raises(SequenceError, match="event 3"):
        server(journal.append, story_id, [type(new_events(3)[0])(3, b"another payload")])
    assert [event.sequence for event in server(journal.events, story_id)] == [3]


def test_append_whose_answer_was_lost_can_be_repeated(server: Server) -> None:
    story_id = server(journal.accept, new_story()).story.id
    first = new_events(1, 2)
    server(journal.append, story_id, first)
    server(journal.append, story_id, first)
    server(journal.append, story_id, [*first, *new_events(3)])
    assert [event.sequence for event in server(journal.events, story_id)] == [1, 2, 3]
    assert server(journal.get, story_id, "tenant").size_bytes == 5 + 3 * len(b"event 1")


def test_event_and_picture_are_stored_together(server: Server) -> None:
    story_id = server(journal.accept, new_story()).story.id
    event = type(new_events(1)[0])(1, b"frame", PICTURE)
    server(journal.append, story_id, [event])
    server(journal.append, story_id, [event])
    assert server(journal.events, story_id)[0].picture == PICTURE.key
    assert server(journal.artifacts, story_id, ArtifactKind.PICTURE) == [PICTURE]
    assert server(journal.get, story_id, "tenant").size_bytes == 5 + 5 + 100


def test_checkpoint_takes_the_place_of_the_one_before(server: Server) -> None:
    story_id = server(journal.accept, new_story()).story.id
    first, second = (Artifact(f"stories/x/checkpoint-0-{n}.aa", ArtifactKind.CHECKPOINT, 0, 10 * n) for n in (1, 2))
    assert server(journal.keep, story_id, first) == []
    assert server(journal.keep, story_id, second) == [first.key]
    assert server(journal.keep, story_id, second) == []
    assert server(journal.artifacts, story_id, ArtifactKind.CHECKPOINT) == [second]
    assert server(journal.get, story_id, "tenant").size_bytes == 5 + 20


def test_story_ends_once(server: Server, clock: TurnedClock) -> None:
    story_id = server(journal.accept, new_story()).story.id
    server(journal.begin, story_id)
    assert server(journal.get, story_id, "tenant").state is StoryState.RUNNING
    clock.time += 5
    for _ in range(2):
        server(journal.finish, story_id, StoryState.FAILED, events=new_events(1), error=b"status", summary=b"sum")
    story = server(journal.get, story_id, "tenant")
    assert (story.state, story.finished_at, story.error, story.summary) == ("failed", clock.time, b"status", b"sum")
    assert len(server(journal.events, story_id)) == 1
    with pytest.raises(StoryLostError, match="has ended"):
        server(journal.finish, story_id, StoryState.FINISHED)
    with pytest.raises(StoryLostError, match="has ended"):
        server(journal.append, story_id, new_events(2))
    assert not server(journal.request_cancel, story_id, "tenant").cancel_requested
    with pytest.raises(ValueError, match="does not end as queued"):
        server(journal.finish, story_id, StoryState.QUEUED)


def test_server_that_lost_a_story_cannot_touch_it(server: Server, other: Server, clock: TurnedClock) -> None:
    story_id = server(journal.accept, new_story()).story.id
    clock.time += LEASE_SECONDS
    assert [story.id for story in other(leases.adopt)] == [story_id]
    with pytest.raises(StoryLostError, match="another server"):
        server(journal.append, story_id, new_events(1))
    with pytest.raises(StoryLostError, match="another server"):
        server(journal.finish, story_id, StoryState.FINISHED)
    with pytest.raises(StoryLostError, match="another server"):
        server(journal.keep, story_id, PICTURE)
    with pytest.raises(StoryLostError, match="no longer stored"):
        server(journal.begin, "unknown")
    other(journal.finish, story_id, StoryState.FINISHED, events=new_events(1))


def test_lists_newest_first_page_by_page(server: Server, clock: TurnedClock) -> None:
    expected = []
    for index in range(7):
        expected.append(server(journal.accept, new_story()).story.id)
        clock.time += index % 2  # Some at the same moment.
    server(journal.accept, new_story("other"))
    seen, token = [], ""
    while True:
        page = server(journal.list_stories, "tenant", size=3, token=token)
        seen += page.items
        # Neither a new story nor one that is gone shifts the pages.
        server(journal.accept, new_story())
        if not (token := page.next_token):
            break
    assert sorted(story.id for story in seen) == sorted(expected)
    order = [(story.created_at, story.id) for story in seen]
    assert order == sorted(order, reverse=True)


def test_lists_by_state(server: Server) -> None:
    ids = [server(journal.accept, new_story()).story.id for _ in range(3)]
    server(journal.finish, ids[1], StoryState.CANCELLED)
    page = server(journal.list_stories, "tenant", state=StoryState.CANCELLED, size=5)
    assert [story.id for story in page.items] == [ids[1]]
    assert page.next_token == ""


@pytest.mark.parametrize("damage", ["x", "é", "A" * 40, "swap", "other"])
def test_damaged_page_token_is_refused(server: Server, damage: str) -> None:
    for _ in range(3):
        server(journal.accept, new_story())
    token = server(journal.list_stories, "tenant", size=1).next_token
    swapped = token[:20] + ("B" if token[20] == "A" else "A") + token[21:]
    bad = {"swap": swapped, "other": token}.get(damage, damage)
    tenant = "other" if damage == "other" else "tenant"
    with pytest.raises(PageTokenError, match="start again"):
        server(journal.list_stories, tenant, size=1, token=bad)


def test_quota_counts_what_a_tenant_has(server: Server) -> None:
    story_id = server(journal.accept, new_story(), Quota(open_stories=1)).story.id
    server(journal.append, story_id, [type(new_events(1)[0])(1, b"frame", PICTURE)])
    used = server(quotas.usage, "tenant")
    assert (used.size_bytes, used.stories, used.open_stories) == (110, 1, 1)
    with pytest.raises(QuotaExceededError, match="1 of 1 open_stories"):
        server(journal.accept, new_story(), Quota(open_stories=1))
    with pytest.raises(QuotaExceededError, match="110 of 110 size_bytes"):
        server(journal.accept, new_story(), Quota(size_bytes=110))
    server(journal.accept, new_story("other"), Quota(open_stories=1))
    server(journal.finish, story_id, StoryState.FINISHED)
    server(journal.accept, new_story(request_id="r"), Quota(open_stories=1))
    assert server(journal.accept, new_story(request_id="r"), Quota(open_stories=1)).existing, (
        "a repetition needs no room"
    )
    assert server(quotas.usage, "nobody").stories == 0
