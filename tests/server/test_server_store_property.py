"""Random traffic of two servers that crash, lose answers and take each other's stories over.

No event is lost or doubled, numbers rise above all that a client may have seen, and each open story has one owner.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import delete

from storyloom_server.store import NewEvent, StoryState, Transaction, journal, leases, tables
from storyloom_server.store.errors import StoryLostError
from tests.server.databases import PostgreSQL
from tests.server.journals import LEASE_SECONDS, Server, TurnedClock, new_story


class LostAnswerError(Exception):
    """The caller does not hear what became of its call."""


@dataclass
class Believed:
    """What a server believes of a story that it works on: the next free number, and the end of its reservation."""

    next_number: int
    reserved: int


@dataclass
class Expected:
    """What must be true of a story: its events, the highest number that a client may have seen, and its end."""

    request_id: str | None
    events: list[tuple[int, bytes]] = field(default_factory=list)
    seen: int = 0
    state: StoryState | None = None


class TwoServers(RuleBasedStateMachine):
    """Each server keeps in memory what it works on; a crash wipes that."""

    url = ""
    server = st.sampled_from("ab")
    work = st.integers(0, 1000)

    def __init__(self) -> None:
        super().__init__()
        self.clock = TurnedClock()
        self.servers = {name: Server(self.url, self.clock, name) for name in "ab"}
        self.running: dict[str, dict[str, Believed]] = {"a": {}, "b": {}}
        self.expected: dict[str, Expected] = {}
        with self.servers["a"].database.transaction() as transaction:
            transaction.connection.execute(delete(tables.story))

    def teardown(self) -> None:
        for server in self.servers.values():
            server.database.close()

    @rule(name=server, request_id=st.none() | st.sampled_from("xyz"))
    def accept(self, name: str, request_id: str | None) -> None:
        new = new_story(request_id=request_id)
        accepted = self.servers[name](journal.accept, new)
        earlier = [key for key, story in self.expected.items() if request_id and story.request_id == request_id]
        assert accepted.existing == bool(earlier)
        if earlier:
            assert accepted.story.id == earlier[0]
            return
        self.expected[new.id] = Expected(request_id)
        self.running[name][new.id] = Believed(1, 0)

    @precondition(lambda self: self.works())
    @rule(work=work, gap=st.integers(0, 3), lost=st.sampled_from(["", "before", "after"]))
    def append(self, work: int, gap: int, lost: str) -> None:
        name, story_id = self.pick(work)
        believed = self.running[name][story_id]
        number = believed.next_number + gap
        event = NewEvent(number, f"{name} {number}".encode())

        def losing(transaction: Transaction) -> None:
            journal.append(transaction, story_id, [event], reserve=number + 2)
            raise LostAnswerError

        try:
            if lost == "before":  # The connection broke before the commit.
                with pytest.raises(LostAnswerError):
                    self.servers[name](losing)
            if lost == "after":  # It was stored, but the answer did not get through: the server tries again.
                self.servers[name](journal.append, story_id, [event], reserve=number + 2)
            self.servers[name](journal.append, story_id, [event], reserve=number + 2)
        except StoryLostError:
            self.check_lost(name, story_id)
            return
        self.check_owned(name, story_id)
        self.expected[story_id].events.append((number, event.payload))
        believed.next_number, believed.reserved = number + 1, number + 2
        self.expected[story_id].seen = max(self.expected[story_id].seen, number)

    @precondition(lambda self: self.works())
    @rule(work=work)
    def show_unstored_event(self, work: int) -> None:
        """An event that clients see, but that is not stored, takes a reserved number."""
        name, story_id = self.pick(work)
        believed = self.running[name][story_id]
        if believed.next_number <= believed.reserved:
            self.expected[story_id].seen = max(self.expected[story_id].seen, believed.next_number)
            believed.next_number += 1

    @precondition(lambda self: self.works())
    @rule(work=work, state=st.sampled_from([StoryState.FINISHED, StoryState.FAILED]))
    def finish(self, work: int, state: StoryState) -> None:
        name, story_id = self.pick(work)
        try:
            self.servers[name](journal.finish, story_id, state)
        except StoryLostError:
            self.check_lost(name, story_id)
            return
        self.check_owned(name, story_id)
        self.expected[story_id].state = state
        del self.running[name][story_id]

    @rule(name=server)
    def crash(self, name: str) -> None:
        self.servers[name] = self.servers[name].restarted()
        self.running[name] = {}

    @rule(name=server, limit=st.integers(1, 4))
    def adopt(self, name: str, limit: int) -> None:
        for story in self.servers[name](leases.adopt, self.running[name].keys(), limit=limit):
            assert self.expected[story.id].state is None
            assert story.sequence_reserved >= self.expected[story.id].seen
            self.running[name][story.id] = Believed(story.sequence_reserved + 1, story.sequence_reserved)

    @rule(name=server)
    def renew(self, name: str) -> None:
        for story_id in self.servers[name](leases.renew, self.running[name].keys()).lost:
            self.check_lost(name, story_id)

    @rule(seconds=st.sampled_from([1.0, LEASE_SECONDS / 2, LEASE_SECONDS, 86400.0, -86400.0]))
    def turn_clock(self, seconds: float) -> None:
        self.clock.time += seconds

    def works(self) -> list[tuple[str, str]]:
        """Every server with every story that it believes to be its own."""
        return [(name, story_id) for name in "ab" for story_id in self.running[name]]

    def pick(self, work: int) -> tuple[str, str]:
        works = self.works()
        return works[work % len(works)]

    def check_owned(self, name: str, story_id: str) -> None:
        """A server changes only stories that are its own."""
        story = self.servers[name](journal.get, story_id, "tenant")
        assert story.life == self.servers[name].database.owner.life

    def check_lost(self, name: str, story_id: str) -> None:
        """A server loses a story only to another one."""
        story = self.servers[name](journal.get, story_id, "tenant")
        assert story.life != self.servers[name].database.owner.life
        del self.running[name][story_id]

    @invariant()
    def everything_is_there_once_and_in_order(self) -> None:
        server = self.servers["a"]
        for story_id, expected in self.expected.items():
            events = server(journal.events, story_id, limit=1000)
            assert [(event.sequence, event.payload) for event in events] == expected.events
            assert all(earlier.sequence < later.sequence for earlier, later in pairwise(events))
            story = server(journal.get, story_id, "tenant")
            assert story.sequence_reserved >= expected.seen
            assert (None if story.state.is_open else story.state) == expected.state

    @invariant()
    def open_stories_have_one_owner(self) -> None:
        for name, server in self.servers.items():
            other = self.running["b" if name == "a" else "a"]
            for story_id in self.running[name].keys() & other.keys():
                story = server(journal.get, story_id, "tenant")
                owners = [story.life == each.database.owner.life for each in self.servers.values()]
                assert sum(owners) <= 1, "one of them does not know yet that it lost the story"


def run_machine(url: str, examples: int) -> None:
    machine = type("Machine", (TwoServers,), {"url": url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_two_servers_on_sqlite(tmp_path: Path) -> None:
    run_machine(f"sqlite:///{tmp_path / 'x.db'}", 25)


def test_two_servers_on_postgresql(postgresql_server: PostgreSQL) -> None:
    run_machine(postgresql_server.new_database(), 8)
