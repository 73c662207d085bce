"""Stories between the store and their clients: what goes in comes out, and clients see what they should."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom.v1 import story_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_server import errors
from storyloom_server.accepted_story import AcceptedStory, logged
from storyloom_server.catalog import ModelCatalog
from storyloom_server.messages import Scheduling
from storyloom_server.store import Event, Story, StoryState
from storyloom_server.story_error import StoryError
from storyloom_server.story_records import public_record, read_request, stored_request
from storyloom_server.validate import StoryPlan, plan_story
from tests.server.serving import story

KEPT = 3600.0


@pytest.fixture(scope="module")
def catalog(tiny_package: Path) -> ModelCatalog:
    return ModelCatalog.load([tiny_package])


def accepted(
    catalog: ModelCatalog,
    asked: story_pb2.Story,
    reused: frozenset[int] = frozenset(),
    prompt_flags: Mapping[int, str] | None = None,
) -> AcceptedStory:
    plan = plan_story(asked, catalog)
    assert isinstance(plan, StoryPlan)
    return AcceptedStory(
        "id", "tenant", plan, Scheduling(), accepted_at=1000.0, reused=reused, prompt_flags=prompt_flags or {}
    )


@given(
    prompts=st.lists(st.sampled_from(["a dog", "{mia} walks", "the red coat"]), min_size=1, max_size=20),
    seed=st.none() | st.integers(0, 2**64 - 1),
    steps=st.integers(1, 9),
    reused=st.frozensets(st.integers(0, 19)),
    flags=st.dictionaries(st.integers(0, 19), st.sampled_from(["words:x", "words:x, own:y"])),
)
def test_a_stored_request_gives_the_same_plan_again(
    catalog: ModelCatalog,
    prompts: list[str],
    seed: int | None,
    steps: int,
    reused: frozenset[int],
    flags: dict[int, str],
) -> None:
    """Also where the request left the seed to the server: what was drawn is stored."""
    asked = story(*prompts, steps=steps, seed=seed)
    asked.characters.add(name="mia", description="a girl")
    taken = frozenset(index for index in reused if index < len(prompts) - 1)
    before = accepted(catalog, asked, taken, flags)
    complete, frames, prompt_flags = read_request(stored_request(before))
    assert (frames, prompt_flags) == (taken, flags)
    after = plan_story(complete, catalog)
    assert after == before.plan
    assert replace(before, plan=after).windows == before.windows


def row(state: StoryState = StoryState.RUNNING, **fields: Any) -> Story:
    return Story(
        **{
            "id": "id",
            "tenant": "tenant",
            "request_id": None,
            "title": "",
            "model": "tiny",
            "state": state,
            "frames": 2,
            "priority": 0,
            "deadline_at": None,
            "parent_id": None,
            "created_at": 1000.5,
            "updated_at": 1001.0,
            "finished_at": None,
            "expires_at": None,
            "replica": "r",
            "life": "l",
            "lease_until": 1030.0,
            "crashes": 0,
            "sequence_reserved": 0,
            "cancel_requested": False,
            "size_bytes": 1,
            "error": None,
            "summary": None,
            **fields,
        }
    )


def events() -> list[pb.GenerateStoryResponse]:
    """Two windows' frames, the later one first."""
    return [
        pb.GenerateStoryResponse(story_id="id", sequence=1, accepted=pb.StoryAccepted(frame_seeds=[1, 2])),
        pb.GenerateStoryResponse(story_id="id", sequence=7, frame=pb.FrameResult(frame_index=1, prompt="a cat")),
        pb.GenerateStoryResponse(story_id="id", sequence=9, frame=pb.FrameResult(frame_index=0, prompt="a dog")),
        pb.GenerateStoryResponse(story_id="id", sequence=10, done=pb.StoryDone(timings={"total_seconds": 3})),
    ]


def test_clients_see_a_finished_story_with_its_frames_in_order(catalog: ModelCatalog) -> None:
    asked = accepted(catalog, story("a dog", "a cat"))
    finished = row(StoryState.FINISHED, finished_at=1010.25, expires_at=2000.0, parent_id="parent")
    record = public_record(finished, stored_request(asked), events(), KEPT)
    assert (record.story_id, record.state, record.parent_story_id) == ("id", pb.STORY_STATE_FINISHED, "parent")
    assert record.story == asked.plan.story
    assert [frame.prompt for frame in record.frames] == ["a dog", "a cat"]
    assert record.done.timings.total_seconds == 3
    assert record.last_sequence == 10
    times = (record.create_time, record.finish_time, record.expire_time)
    assert [stamp.ToNanoseconds() / 1e9 for stamp in times] == [1000.5, 1010.25, 2000.0]
    assert not record.HasField("failure")


def test_a_story_is_kept_for_so_long_after_its_end(catalog: ModelCatalog) -> None:
    request = stored_request(accepted(catalog, story("a dog")))
    kept = public_record(row(StoryState.FINISHED, finished_at=1010.0, expires_at=None), request, (), KEPT)
    assert kept.expire_time.ToSeconds() == 4610
    for_ever = public_record(row(StoryState.FINISHED, finished_at=1010.0, expires_at=None), request, (), math.inf)
    assert not for_ever.HasField("expire_time")


def test_an_open_story_has_no_end(catalog: ModelCatalog) -> None:
    request = stored_request(accepted(catalog, story("a dog")))
    record = public_record(row(sequence_reserved=257), request, events()[:2], KEPT)
    assert record.state == pb.STORY_STATE_RUNNING
    assert not any(record.HasField(field) for field in ("finish_time", "expire_time", "done", "failure"))
    # Not the reserved one: who watches on from there must not miss what comes before it.
    assert record.last_sequence == 7


@pytest.mark.parametrize(
    "error",
    [errors.engine_crashed(3), errors.job_failed("OUT_OF_MEMORY", "too large"), errors.job_failed("X", "broken")],
)
def test_a_failed_story_says_why(catalog: ModelCatalog, error: StoryError) -> None:
    request = stored_request(accepted(catalog, story("a dog")))
    failed = row(StoryState.FAILED, finished_at=1001.0, error=error.to_bytes())
    failure = public_record(failed, request, (), KEPT).failure
    assert (failure.reason, failure.message) == (error.reason, error.message)
    assert failure.code == error.code.value[0]
    back = StoryError.from_bytes(error.to_bytes())
    assert (back.code, back.reason, back.message) == (error.code, error.reason, error.message)
    assert dict(back.metadata) == dict(error.metadata)


def test_a_cancelled_story_is_no_failure(catalog: ModelCatalog) -> None:
    request = stored_request(accepted(catalog, story("a dog")))
    cancelled = row(StoryState.CANCELLED, finished_at=1001.0, error=errors.story_cancelled().to_bytes())
    record = public_record(cancelled, request, (), KEPT)
    assert record.state == pb.STORY_STATE_CANCELLED
    assert not record.HasField("failure")
    assert StoryError.from_bytes(errors.story_cancelled().to_bytes()).code is grpc.StatusCode.CANCELLED


def test_every_state_of_the_store_has_a_name_for_clients(catalog: ModelCatalog) -> None:
    request = stored_request(accepted(catalog, story("a dog")))
    seen = [public_record(row(state), request, (), KEPT).state for state in StoryState]
    assert len(set(seen)) == len(StoryState)
    assert pb.STORY_STATE_UNSPECIFIED not in seen


def test_stored_events_are_durable_and_know_their_picture() -> None:
    for event, picture in itertools.product(events(), (None, "stories/1.png")):
        back = logged(Event(event.sequence, event.SerializeToString(), picture))
        assert (back.event, back.durable, back.picture) == (event, True, picture or "")
