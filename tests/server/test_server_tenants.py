"""Two tenants on one server: neither sees the other's stories, and each has what it may have."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from storyloom.v1 import character_service_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_server.tenants import digest, new_token
from tests.server.serving import ServerProcess, error_details, serving, story, wait_until

HEAVY, LIGHT, RARE, RARE_TOO = new_token(), new_token(), new_token(), new_token()
FILE = f"""
tenants:
  heavy:
    weight: 3
    max_priority: high
    limits: {{open_stories: 8}}
    tokens: [{digest(HEAVY)}]
  light:
    max_priority: low
    limits: {{open_stories: 2}}
    tokens: [{digest(LIGHT)}]
  rare:
    limits: {{stories_per_minute: 6}}
    tokens: [{digest(RARE)}]
  rare-too:
    limits: {{stories_per_minute: 6}}
    tokens: [{digest(RARE_TOO)}]
"""
LONG = 100


class Tenant:
    """A client with a token."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = [("authorization", f"Bearer {token}")]

    def __call__(self, method: str, request: Any) -> Any:
        """Calls any method of any service by its name."""
        service = "CharacterService" if "Character" in method else "StoryService"
        messages = character_service_pb2 if "Character" in method else pb
        call: Callable[..., Any] = self._channel.unary_unary(
            f"/storyloom.v1.{service}/{method}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=getattr(messages, f"{method}Response").FromString,
        )
        return call(request, metadata=self._metadata, timeout=60)

    def create(self, *prompts: str, steps: int = 2, **fields: Any) -> str:
        request = pb.CreateStoryRequest(story=story(*prompts, steps=steps), **fields)
        return str(self("CreateStory", request).story.story_id)

    def record(self, story_id: str) -> pb.StoryRecord:
        found: pb.StoryRecord = self("GetStory", pb.GetStoryRequest(story_id=story_id)).story
        return found

    def watch(self, story_id: str) -> Any:
        call: Callable[..., Any] = self._channel.unary_stream(
            "/storyloom.v1.StoryService/WatchStory",
            request_serializer=pb.WatchStoryRequest.SerializeToString,
            response_deserializer=pb.WatchStoryResponse.FromString,
        )
        return call(pb.WatchStoryRequest(story_id=story_id), metadata=self._metadata, timeout=90)

    def steps(self, story_id: str) -> int:
        """Reads a story to its end, however that is; the steps that it took."""
        taken = 0
        with suppress(grpc.RpcError):
            for event in self.watch(story_id):
                taken = max(taken, event.progress.step)
        return taken

    def idle(self) -> bool:
        """Whether every story has ended."""
        open_states = (pb.STORY_STATE_QUEUED, pb.STORY_STATE_RUNNING)
        return not any(self("ListStories", pb.ListStoriesRequest(state=state)).stories for state in open_states)

    def cancel(self, *story_ids: str) -> None:
        for story_id in story_ids:
            self("CancelStory", pb.CancelStoryRequest(story_id=story_id))
            wait_until(lambda story_id=story_id: self.state(story_id) == "CANCELLED", 60)  # type: ignore[misc]

    def state(self, story_id: str) -> str:
        return pb.StoryState.Name(self.record(story_id).state).removeprefix("STORY_STATE_")


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Eight rows a step, so that two stories of two frames share one; 20 ms a step."""
    folder = tmp_path_factory.mktemp("tenants")
    tokens = folder / "tokens.yaml"
    tokens.write_text(FILE)
    slow = {"STORYLOOM_TEST_STEP_SECONDS": "0.02"}
    with serving(folder, tiny_package, "--tokens", str(tokens), "--max-rows", "8", environment=slow) as running:
        yield running


@pytest.fixture
def heavy(channel: grpc.Channel) -> Tenant:
    return Tenant(channel, HEAVY)


@pytest.fixture
def light(channel: grpc.Channel) -> Tenant:
    return Tenant(channel, LIGHT)


@contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[dict[str, Any]]:
    details: dict[str, Any] = {}
    with pytest.raises(grpc.RpcError) as caught:
        yield details
    details.update(error_details(caught.value))
    assert (caught.value.code(), details["ErrorInfo"].reason) == (code, reason)


def test_the_stories_of_others_are_not_there(heavy: Tenant, light: Tenant) -> None:
    theirs = heavy.create("a dog", steps=LONG, request_id="mine")
    not_found = (grpc.StatusCode.NOT_FOUND, "STORY_NOT_FOUND")
    for method in ("GetStory", "CancelStory", "ExtendStory", "RedoFrame"):
        with refused(*not_found):
            light(method, getattr(pb, f"{method}Request")(story_id=theirs))
    with refused(*not_found):
        list(light.watch(theirs))
    assert heavy.state(theirs) in ("QUEUED", "RUNNING")  # Nobody cancelled it.
    # The same request id is another request for another tenant.
    own = light.create("a cat", request_id="mine", scheduling={"priority": pb.PRIORITY_LOW})
    assert own != theirs
    assert [one.story_id for one in light("ListStories", pb.ListStoriesRequest()).stories] == [own]
    assert theirs in {one.story_id for one in heavy("ListStories", pb.ListStoriesRequest()).stories}
    heavy.cancel(theirs)
    with refused(*not_found):
        light("GetStory", pb.GetStoryRequest(story_id=theirs))


def test_the_characters_of_others_are_not_there(heavy: Tenant, light: Tenant) -> None:
    created = character_service_pb2.CreateCharacterRequest(name="mia", description="a girl")
    kept = heavy("CreateCharacter", created).character.character_id
    not_found = (grpc.StatusCode.NOT_FOUND, "CHARACTER_NOT_FOUND")
    for method in ("GetCharacter", "DeleteCharacter"):
        with refused(*not_found):
            light(method, getattr(character_service_pb2, f"{method}Request")(character_id=kept))
    asked = story("{mia} walks")
    asked.characters.add(name="mia", character_id=kept)
    with refused(*not_found):
        light("CreateStory", pb.CreateStoryRequest(story=asked))
    assert not light("ListCharacters", character_service_pb2.ListCharactersRequest()).characters
    assert heavy("GetCharacter", character_service_pb2.GetCharacterRequest(character_id=kept)).character.name == "mia"


def test_a_priority_that_is_not_allowed_is_refused(heavy: Tenant, light: Tenant) -> None:
    for priority in (pb.PRIORITY_UNSPECIFIED, pb.PRIORITY_NORMAL, pb.PRIORITY_HIGH):
        assert heavy.create("a dog", scheduling={"priority": priority})
    with refused(grpc.StatusCode.PERMISSION_DENIED, "PRIORITY_TOO_HIGH"):
        light.create("a dog", scheduling={"priority": pb.PRIORITY_NORMAL})
    assert light.create("a dog", scheduling={"priority": pb.PRIORITY_LOW})


def test_who_asks_for_no_priority_gets_the_one_that_is_allowed(light: Tenant) -> None:
    assert light.create("a dog")


def test_open_stories_are_limited_each_tenant_on_its_own(heavy: Tenant, light: Tenant) -> None:
    wait_until(light.idle, 60)
    low = {"priority": pb.PRIORITY_LOW}
    made = [light.create("a dog", steps=LONG, scheduling=low, request_id=f"limit-{n}") for n in range(2)]
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED") as details:
        light.create("a dog", steps=LONG, scheduling=low)
    assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
    # One that was accepted before is no further story.
    assert light.create("a dog", steps=LONG, scheduling=low, request_id="limit-0") == made[0]
    heavy.cancel(heavy.create("a dog", steps=LONG))
    light.cancel(made[0])
    made.append(light.create("a dog", steps=LONG, scheduling=low))
    light.cancel(*made[1:])


def test_the_rate_of_stories_is_limited(channel: grpc.Channel, heavy: Tenant) -> None:
    rare = Tenant(channel, RARE)
    rare.create("a dog")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STORIES") as details:
        rare.create("a dog")
    assert 0 < details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() <= 10
    assert heavy.create("a dog")


def test_a_repeated_request_is_no_further_story_for_the_rate(channel: grpc.Channel) -> None:
    rare = Tenant(channel, RARE_TOO)
    made = {rare.create("a dog", request_id="again") for _ in range(3)}
    assert len(made) == 1
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STORIES"):
        rare.create("a dog", request_id="another")


def test_weights_share_the_device(heavy: Tenant, light: Tenant) -> None:
    """Sizes differ, so that the two never share a step: the heavy tenant should get three steps of four."""
    for tenant in (heavy, light):
        wait_until(tenant.idle, 60)
    made = {}
    for tenant, width in ((light, 64), (heavy, 96)):
        asked = story("a dog", steps=LONG, width=width, height=64)
        request = pb.CreateStoryRequest(story=asked, scheduling={"priority": pb.PRIORITY_LOW})
        made[tenant] = tenant("CreateStory", request).story.story_id
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(light.steps, made[light])
        wait_until(lambda: heavy.state(made[heavy]) == "FINISHED", 90)
        light.cancel(made[light])
        assert LONG * 0.15 <= reading.result() <= LONG * 0.7
