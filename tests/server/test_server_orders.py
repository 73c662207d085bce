"""From a request to an order: what it is to be, and what is wrong with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyloom.v1 import character_service_pb2, story_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.catalog import ModelCatalog
from storyloom_server.characters import Characters
from storyloom_server.metrics import Metrics
from storyloom_server.orders import Order, OrderTaker
from storyloom_server.pictures import PictureLimits
from storyloom_server.poses import Poses
from storyloom_server.references import References
from storyloom_server.safety import ALLOWED, Safety, Verdict
from storyloom_server.scheduler import Priority
from storyloom_server.store import Store, StoreOptions
from storyloom_server.story_error import StoryError
from storyloom_server.supervisor import RestartPolicy, Supervisor
from storyloom_server.tenants import Tenant
from tests.server.engines import engine_options
from tests.server.serving import story

TENANT = Tenant("studio")


class NoDragons:
    """A safety check that refuses dragons in prompts."""

    name = "dragons"

    def prompt(self, text: str) -> Verdict:
        return Verdict(refused=True, label="dragon") if "dragon" in text else ALLOWED

    def picture(self, rgb: Any) -> Verdict:
        return ALLOWED


@pytest.fixture(scope="module")
def catalog(tiny_package: Path) -> ModelCatalog:
    return ModelCatalog.load([tiny_package])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store.open(StoreOptions(folder=tmp_path_factory.mktemp("state")))
    yield store
    asyncio.run(store.close())


@pytest.fixture(scope="module")
def references(store: Store) -> References:
    """With an engine that is never started."""
    engine = Supervisor(engine_options(), RestartPolicy())
    return References(store, engine, Metrics("test", ["tiny"]), PictureLimits(4, 16), Safety("off", []))


@pytest.fixture(scope="module")
def characters(store: Store, catalog: ModelCatalog, references: References) -> Characters:
    return Characters(store, catalog, references)


def taker(catalog: ModelCatalog, characters: Characters, references: References, safety: Safety) -> OrderTaker:
    return OrderTaker(catalog, characters, references, Poses(catalog, PictureLimits(4, 16), safety), safety)


@pytest.fixture(scope="module")
def orders(catalog: ModelCatalog, characters: Characters, references: References) -> OrderTaker:
    return taker(catalog, characters, references, Safety("off", []))


def cast_story(*prompts: str) -> story_pb2.Story:
    asked = story(*prompts)
    asked.characters.add(name="mia", description="a girl")
    return asked


def finished(orders: OrderTaker, asked: story_pb2.Story) -> pb.StoryRecord:
    """The record of a story that ended well, as the store gives it."""
    order = asyncio.run(orders.new_story(TENANT, pb.CreateStoryRequest(story=asked)))
    return pb.StoryRecord(story_id="parent", state=pb.STORY_STATE_FINISHED, story=order.plan.story)


def new(orders: OrderTaker, request: Any, **arguments: Any) -> Order:
    return asyncio.run(orders.new_story(TENANT, request, **arguments))


def paths(error: StoryError) -> list[str]:
    return [violation.path for violation in error.violations]


def test_an_order_has_the_requests_terms(orders: OrderTaker) -> None:
    request = pb.GenerateStoryRequest(story=story("a dog"), request_id="my-id.1_2")
    request.scheduling.deadline.FromMilliseconds(2500)
    request.scheduling.priority = pb.PRIORITY_HIGH
    order = new(orders, request, call_seconds=9.0)
    assert (order.request_id, order.deadline_seconds, order.call_seconds) == ("my-id.1_2", 2.5, 9.0)
    assert (order.priority, order.parent_id, order.reused) == (Priority.HIGH, "", frozenset())
    assert [frame.prompt.text for frame in order.plan.job.frames] == ["a dog"]
    plain = new(orders, pb.CreateStoryRequest(story=story("a dog")))
    assert (plain.request_id, plain.deadline_seconds, plain.priority) == ("", None, Priority.NORMAL)


def test_the_digest_is_of_the_content_whatever_the_call_and_the_id(orders: OrderTaker) -> None:
    asked = story("a dog", seed=None)
    requests = [
        pb.CreateStoryRequest(story=asked),
        pb.CreateStoryRequest(story=asked, request_id="x"),
        pb.GenerateStoryRequest(story=asked, request_id="y"),
        pb.GenerateStoryRequest(story=asked, on_disconnect=pb.DISCONNECT_POLICY_CANCEL),
    ]
    made = [new(orders, request) for request in requests]
    assert len({order.digest for order in made}) == 1
    # Without a seed each is a story of its own, and yet the same request.
    assert len({order.plan.settings.seed for order in made}) == len(made)
    # The caller's message is left as it was.
    assert requests[1].request_id == "x"


@given(
    prompts=st.lists(st.sampled_from(["a dog", "a cat"]), min_size=1, max_size=3),
    steps=st.integers(1, 3),
    seed=st.none() | st.integers(0, 2),
    priority=st.sampled_from([pb.PRIORITY_UNSPECIFIED, pb.PRIORITY_LOW]),
    deadline=st.sampled_from([0, 5]),
    other=st.data(),
)
def test_digests_differ_just_where_requests_do(
    orders: OrderTaker, prompts: list[str], steps: int, seed: int | None, priority: Any, deadline: int, other: Any
) -> None:
    def request() -> pb.CreateStoryRequest:
        made = pb.CreateStoryRequest(story=story(*prompts, steps=steps, seed=seed))
        if priority or deadline:
            made.scheduling.priority = priority
        if deadline:
            made.scheduling.deadline.FromSeconds(deadline)
        return made

    changed = request()
    if other.draw(st.booleans()):
        changed.story.frames[0].prompt += " and a hat"
    if other.draw(st.booleans()):
        changed.story.settings.steps = 4
    if other.draw(st.booleans()):
        changed.scheduling.priority = pb.PRIORITY_HIGH
    same = changed == request()
    assert (new(orders, changed).digest == new(orders, request()).digest) is same


def test_an_extension_and_a_new_frame_of_one_story_are_different_requests(orders: OrderTaker) -> None:
    parent = finished(orders, story("a dog"))
    extension = asyncio.run(
        orders.extension(TENANT, pb.ExtendStoryRequest(story_id="parent", frames=[{"prompt": "a cat"}]), parent)
    )
    redone = asyncio.run(orders.redone_frame(TENANT, pb.RedoFrameRequest(story_id="parent"), parent))
    other = asyncio.run(orders.redone_frame(TENANT, pb.RedoFrameRequest(story_id="another"), parent))
    assert len({extension.digest, redone.digest, other.digest}) == 3


def test_everything_that_is_wrong_is_told_at_once(orders: OrderTaker) -> None:
    request = pb.CreateStoryRequest(story=story("", steps=0), request_id="no spaces")
    request.scheduling.deadline.FromSeconds(0)
    request.scheduling.priority = 17  # type: ignore[assignment]
    with pytest.raises(StoryError) as caught:
        new(orders, request)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_STORY")
    assert paths(caught.value) == [
        "story.frames[0].prompt",
        "story.settings.steps",
        "request_id",
        "scheduling.deadline",
        "scheduling.priority",
    ]
    assert "PRIORITY_HIGH" in caught.value.violations[-1].message


@pytest.mark.parametrize("bad", ["a" * 37, "ä", "a/b", "a b", "a\n", "\n"])
def test_bad_request_ids_alone_are_refused_too(orders: OrderTaker, bad: str) -> None:
    with pytest.raises(StoryError) as caught:
        new(orders, pb.GenerateStoryRequest(story=story("a dog"), request_id=bad))
    assert paths(caught.value) == ["request_id"]


def test_an_extension_keeps_every_frame_of_its_parent(orders: OrderTaker) -> None:
    parent = finished(orders, cast_story("{mia} walks", "{mia} sits"))
    request = pb.ExtendStoryRequest(
        story_id="parent",
        frames=[{"prompt": "{bo} meets {mia}"}],
        new_characters=[{"name": "bo", "description": "an old man"}],
    )
    order = asyncio.run(orders.extension(TENANT, request, parent))
    assert (order.parent_id, order.reused) == ("parent", {0, 1})
    assert list(order.plan.story.frames)[:2] == list(parent.story.frames)
    assert order.plan.settings == parent.story.settings
    assert order.plan.job.frames[2].prompt.text == "an old man meets a girl"
    # The parent is another story, and stays as it is.
    assert len(parent.story.frames) == 2


def test_an_extension_needs_frames_and_is_checked_like_any_story(orders: OrderTaker) -> None:
    parent = finished(orders, cast_story("{mia} walks"))
    with pytest.raises(StoryError) as caught:
        asyncio.run(orders.extension(TENANT, pb.ExtendStoryRequest(), parent))
    assert paths(caught.value) == ["frames"]
    request = pb.ExtendStoryRequest(
        frames=[{"prompt": "{nobody}"}], new_characters=[{"name": "mia", "description": "another"}], request_id="?"
    )
    with pytest.raises(StoryError) as caught:
        asyncio.run(orders.extension(TENANT, request, parent))
    assert set(paths(caught.value)) == {"new_characters[0].name", "frames[0].prompt", "request_id"}
    assert str(caught.value.message).count("story.") == 0


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "FAILED", "CANCELLED"])
def test_only_finished_stories_go_on(orders: OrderTaker, state: str) -> None:
    parent = finished(orders, story("a dog"))
    parent.state = pb.StoryState.Value(f"STORY_STATE_{state}")
    extend = orders.extension(TENANT, pb.ExtendStoryRequest(frames=[{"prompt": "a cat"}]), parent)
    redo = orders.redone_frame(TENANT, pb.RedoFrameRequest(), parent)
    for order in (extend, redo):
        with pytest.raises(StoryError, match=state.lower()) as caught:
            asyncio.run(order)
        assert caught.value.reason == "STORY_NOT_FINISHED"


@pytest.mark.parametrize(
    ("request_fields", "prompt", "seed"),
    [
        ({}, "a cat", None),
        ({"seed": 5}, "a cat", 5),
        ({"frame": {"prompt": "a fox"}}, "a fox", None),
        ({"frame": {"prompt": "a fox"}, "seed": 5}, "a fox", 5),
        ({"frame": {"prompt": "a fox", "seed": 6}, "seed": 5}, "a fox", 6),
        ({"frame": {"prompt": "a fox", "seed": 0}}, "a fox", 0),
    ],
)
def test_one_frame_is_made_anew_and_the_others_kept(
    orders: OrderTaker, request_fields: dict[str, Any], prompt: str, seed: int | None
) -> None:
    parent = finished(orders, story("a dog", "a cat", "a bird"))
    request = pb.RedoFrameRequest(story_id="parent", frame_index=1, **request_fields)
    order = asyncio.run(orders.redone_frame(TENANT, request, parent))
    assert order.reused == {0, 2}
    seeds = order.plan.frame_seeds
    assert [seeds[0], seeds[2]] == [parent.story.frames[0].seed, parent.story.frames[2].seed]
    assert seeds[1] == seed if seed is not None else seeds[1] != parent.story.frames[1].seed
    assert [frame.prompt.text for frame in order.plan.job.frames] == ["a dog", prompt, "a bird"]


@pytest.mark.parametrize("index", [2, 3, 2**32 - 1])
def test_a_frame_that_is_not_there_cannot_be_made_anew(orders: OrderTaker, index: int) -> None:
    parent = finished(orders, story("a dog", "a cat"))
    with pytest.raises(StoryError, match="use 0 to 1") as caught:
        asyncio.run(orders.redone_frame(TENANT, pb.RedoFrameRequest(frame_index=index), parent))
    assert paths(caught.value) == ["frame_index"]


def test_kept_characters_are_filled_in_for_their_tenant_alone(orders: OrderTaker, characters: Characters) -> None:
    created = character_service_pb2.CreateCharacterRequest(name="mia", description="a girl with red hair")
    kept = asyncio.run(characters.create(TENANT, created))
    asked = story("{heroine} walks")
    asked.characters.add(name="heroine", character_id=kept.character_id)
    order = new(orders, pb.CreateStoryRequest(story=asked))
    assert order.plan.job.frames[0].prompt.text == "a girl with red hair walks"
    assert not order.plan.story.characters[0].character_id  # The story stays as it is when the character is deleted.
    with pytest.raises(StoryError) as caught:
        asyncio.run(orders.new_story(Tenant("other"), pb.CreateStoryRequest(story=asked)))
    assert caught.value.reason == "CHARACTER_NOT_FOUND"


def test_refused_prompts_are_told_by_their_fields(
    catalog: ModelCatalog, characters: Characters, references: References
) -> None:
    strict = taker(catalog, characters, references, Safety("block", [NoDragons()]))
    asked = story("a dog", "a dragon")
    asked.negative_prompt = "dragons"
    with pytest.raises(StoryError) as caught:
        new(strict, pb.CreateStoryRequest(story=asked))
    assert caught.value.reason == "SAFETY_BLOCKED"
    assert paths(caught.value) == ["story.frames[1].prompt", "story.negative_prompt"]
    parent = finished(taker(catalog, characters, references, Safety("off", [])), asked)
    more = pb.ExtendStoryRequest(story_id="parent", frames=[{"prompt": "a dragon"}])
    with pytest.raises(StoryError) as caught:
        asyncio.run(strict.extension(TENANT, more, parent))
    assert caught.value.reason == "SAFETY_BLOCKED"
    assert paths(caught.value) == ["story_id", "frames[0].prompt", "story_id"]


def test_flagged_prompts_are_told_of_the_frames_that_have_them(
    catalog: ModelCatalog, characters: Characters, references: References
) -> None:
    lenient = taker(catalog, characters, references, Safety("flag", [NoDragons()]))
    asked = story("a dog", "a dragon")
    assert new(lenient, pb.CreateStoryRequest(story=asked)).prompt_flags == {1: "dragons:dragon"}
    asked.negative_prompt = "dragons"
    flagged = new(lenient, pb.CreateStoryRequest(story=asked)).prompt_flags
    assert flagged == {0: "dragons:dragon", 1: "dragons:dragon"}


@pytest.mark.parametrize(
    ("frame", "expected"),
    [({"prompt": "{nobody}"}, ["frame.prompt"]), ({"prompt": ""}, ["frame.prompt"]), (None, [])],
)
def test_a_bad_new_frame_is_told_by_the_requests_field(orders: OrderTaker, frame: Any, expected: list[str]) -> None:
    parent = finished(orders, story("a dog", "a cat"))
    request = pb.RedoFrameRequest(story_id="parent", frame_index=1, request_id="?", frame=frame)
    with pytest.raises(StoryError) as caught:
        asyncio.run(orders.redone_frame(TENANT, request, parent))
    assert paths(caught.value) == [*expected, "request_id"]


def test_what_is_wrong_with_the_parent_is_told_of_its_id(orders: OrderTaker) -> None:
    """As when another model is served by now."""
    parent = finished(orders, story("a dog"))
    parent.story.settings.model = "gone"
    with pytest.raises(StoryError) as caught:
        asyncio.run(orders.extension(TENANT, pb.ExtendStoryRequest(frames=[{"prompt": "a cat"}]), parent))
    assert paths(caught.value) == ["story_id"]
    assert caught.value.violations[0].message.startswith("settings.model of that story: is not served here")
