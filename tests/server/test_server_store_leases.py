"""Which server works on a story: one at a time, another one after its death, none after its end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from storyloom_server.store import StoryState, journal, leases
from tests.server.journals import LEASE_SECONDS, Server, TurnedClock, new_events, new_story


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def servers(database_url: str, clock: TurnedClock) -> Iterator[tuple[Server, Server]]:
    servers = Server(database_url, clock, "a"), Server(database_url, clock, "b")
    yield servers
    for server in servers:
        server.database.close()


def test_restarted_server_takes_its_stories_back_at_once(servers: tuple[Server, Server]) -> None:
    server, other = servers
    ids = [server(journal.accept, new_story()).story.id for _ in range(3)]
    server(journal.append, ids[0], new_events(1, 2), reserve=9)
    server(journal.begin, ids[0])
    server(journal.finish, ids[2], StoryState.FINISHED)
    assert other(leases.adopt) == [], "its lease still runs"
    after = server.restarted()
    adopted = {story.id: story for story in after(leases.adopt)}
    assert adopted.keys() == set(ids[:2])
    assert (adopted[ids[0]].sequence_reserved, adopted[ids[0]].state) == (9, StoryState.QUEUED)
    assert (adopted[ids[0]].crashes, adopted[ids[1]].crashes) == (1, 0), "only one of them can have been the cause"
    assert after(leases.adopt) == []
    after(journal.append, ids[0], new_events(10))
    after.database.close()


def test_stories_of_a_dead_server_go_to_another_when_its_lease_is_over(
    servers: tuple[Server, Server], clock: TurnedClock
) -> None:
    server, other = servers
    story_id = server(journal.accept, new_story()).story.id
    clock.time += LEASE_SECONDS - 1
    assert server(leases.renew, [story_id]).lost == frozenset()
    clock.time += LEASE_SECONDS - 1
    assert other(leases.adopt) == []
    clock.time += 1
    assert [story.id for story in other(leases.adopt)] == [story_id]
    assert server(leases.renew, [story_id]).lost == {story_id}
    assert server(leases.adopt) == []


def test_running_stories_are_not_adopted_again_when_the_clock_jumps(
    servers: tuple[Server, Server], clock: TurnedClock
) -> None:
    server, _ = servers
    story_id = server(journal.accept, new_story()).story.id
    clock.time += 86400
    assert server(leases.adopt, [story_id]) == []
    clock.time -= 2 * 86400
    assert server(leases.renew, [story_id]).lost == frozenset()
    server(journal.append, story_id, new_events(1))
    server(journal.finish, story_id, StoryState.FINISHED)
    assert server(journal.get, story_id, "tenant").finished_at == clock.time


def test_adoption_whose_answer_was_lost_is_made_good(servers: tuple[Server, Server], clock: TurnedClock) -> None:
    server, other = servers
    story_id = server(journal.accept, new_story()).story.id
    clock.time += LEASE_SECONDS
    other(leases.adopt)  # Nobody heard the answer, so nobody renews the lease.
    clock.time += LEASE_SECONDS
    assert [story.id for story in other(leases.adopt)] == [story_id]


def test_adoption_takes_the_oldest_first(servers: tuple[Server, Server], clock: TurnedClock) -> None:
    server, other = servers
    ids = []
    for _ in range(5):
        ids.append(server(journal.accept, new_story()).story.id)
        clock.time += 1
    clock.time += LEASE_SECONDS
    assert [story.id for story in other(leases.adopt, limit=3)] == ids[:3]
    assert [story.id for story in other(leases.adopt, limit=3)] == ids[3:]


def test_leaving_server_hands_its_stories_over(servers: tuple[Server, Server]) -> None:
    server, other = servers
    story_id = server(journal.accept, new_story()).story.id
    server(journal.begin, story_id)
    server(leases.release)
    (story,) = other(leases.adopt)
    assert (story.id, story.crashes, story.replica) == (story_id, 0, "b")


def test_owner_hears_of_a_cancellation_made_elsewhere(servers: tuple[Server, Server]) -> None:
    server, other = servers
    story_id = server(journal.accept, new_story()).story.id
    assert server(leases.renew, [story_id]).cancelled == frozenset()
    assert other(journal.request_cancel, story_id, "tenant").cancel_requested
    assert server(leases.renew, [story_id]).cancelled == {story_id}


def test_crashes_are_counted_for_the_owner_alone(servers: tuple[Server, Server]) -> None:
    server, other = servers
    story_id = server(journal.accept, new_story()).story.id
    assert server(leases.count_crash, [story_id]) == {story_id: 1}
    assert server(leases.count_crash, [story_id, "unknown"]) == {story_id: 2}
    assert other(leases.count_crash, [story_id]) == {}


def test_servers_that_adopt_at_once_share_the_stories(servers: tuple[Server, Server], clock: TurnedClock) -> None:
    dead, first = servers
    ids = {dead(journal.accept, new_story()).story.id for _ in range(40)}
    clock.time += LEASE_SECONDS
    second = Server(first.url, clock, "c")

    def adopt_all(server: Server) -> list[str]:
        adopted = []
        while stories := server(leases.adopt, adopted, limit=3):
            adopted += [story.id for story in stories]
        return adopted

    with ThreadPoolExecutor(2) as threads:
        shares = list(threads.map(adopt_all, (first, second)))
    second.database.close()
    assert sorted(shares[0] + shares[1]) == sorted(ids)
