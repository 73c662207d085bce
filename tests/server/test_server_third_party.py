"""Tools that know nothing of Storyloom: a client that has only reflection, as grpcurl has, and a stock health probe."""

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.server.serving import ServerProcess, serving, wait_until

SERVICES = ("CharacterService", "ModelService", "StoryService")
STORY = {
    "characters": [{"name": "mia", "description": "a girl with red hair"}],
    "frames": [{"prompt": "{mia} walks"}, {"prompt": "{mia} sits"}],
    "settings": {"steps": 3, "seed": 7},
}
PNG = b"\x89PNG\r\n\x1a\n"


class ReflectionClient:
    """JSON in, JSON out; the messages are made of what the server's reflection tells."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    def services(self) -> set[str]:
        return set(self._database.get_services())

    def call(self, service: str, method: str, request: dict[str, Any]) -> Any:
        """The answer of a unary method, a list of the answers of a streaming one."""
        described = self._pool.FindServiceByName(service).methods_by_name[method]
        sent = json_format.ParseDict(request, GetMessageClass(described.input_type)(), descriptor_pool=self._pool)
        kind = self._channel.unary_stream if described.server_streaming else self._channel.unary_unary
        call: Any = kind(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        answer = call(sent, timeout=90)
        return list(map(self._read, answer)) if described.server_streaming else self._read(answer)

    def _read(self, message: Any) -> dict[str, Any]:
        return json_format.MessageToDict(message, descriptor_pool=self._pool)


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("third-party"), tiny_package) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[ReflectionClient]:
    with grpc.insecure_channel(server.address) as channel:
        yield ReflectionClient(channel)


def test_every_service_is_listed(client: ReflectionClient) -> None:
    ours = {f"storyloom.v1.{service}" for service in SERVICES}
    assert client.services() == ours | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def test_a_story_is_made_watched_and_fetched_by_reflection_alone(client: ReflectionClient) -> None:
    service = "storyloom.v1.StoryService"
    created = client.call(service, "CreateStory", {"story": STORY, "requestId": "third-party"})["story"]
    assert created["story"]["settings"]["model"] == "tiny"
    events = client.call(service, "WatchStory", {"storyId": created["storyId"]})
    assert [int(event["sequence"]) for event in events] == sorted(int(event["sequence"]) for event in events)
    assert "accepted" in events[0]
    assert "done" in events[-1]
    pictures = [base64.b64decode(event["frame"]["image"]["png"]) for event in events if "frame" in event]
    record = client.call(service, "GetStory", {"storyId": created["storyId"], "includeImages": True})["story"]
    assert record["state"] == "STORY_STATE_FINISHED"
    assert [base64.b64decode(frame["image"]["png"]) for frame in record["frames"]] == pictures
    assert [picture[: len(PNG)] for picture in pictures] == [PNG, PNG]
    rest = client.call(service, "WatchStory", {"storyId": created["storyId"], "afterSequence": events[-2]["sequence"]})
    assert rest == events[-1:]


def test_other_services_answer_too(client: ReflectionClient) -> None:
    (model,) = client.call("storyloom.v1.ModelService", "ListModels", {})["models"]
    assert model["isDefault"]
    service = "storyloom.v1.CharacterService"
    mia = {"name": "mia", "description": "a girl with red hair"}
    kept = client.call(service, "CreateCharacter", mia)["character"]
    assert client.call(service, "GetCharacter", {"characterId": kept["characterId"]})["character"] == kept


def test_refusals_say_why(client: ReflectionClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.call("storyloom.v1.StoryService", "GetStory", {"storyId": "nobody"})
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "there is no story nobody" in str(caught.value.details())


def test_a_health_probe_follows_the_server_from_its_start_to_its_drain(tiny_package: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gate = tmp_path / "gate"
    slow = {"STORYLOOM_TEST_LOAD_GATE": str(gate), "STORYLOOM_TEST_STEP_SECONDS": "0.05"}
    with (
        serving(tmp_path, tiny_package, "--port", str(port), environment=slow, wait=False) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        probe = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="storyloom.v1.StoryService")
        name = health_pb2.HealthCheckResponse.ServingStatus.Name
        watched = probe.Watch(asked, timeout=300, wait_for_ready=True)
        seen: list[str] = []
        reader = threading.Thread(target=_follow, args=(watched, seen, name), daemon=True)
        reader.start()
        wait_until(lambda: seen == ["NOT_SERVING"], 240)
        assert name(probe.Check(health_pb2.HealthCheckRequest(), timeout=30).status) == "SERVING"
        gate.touch()
        server.wait_ready()
        wait_until(lambda: seen == ["NOT_SERVING", "SERVING"], 30)
        assert name(probe.Check(asked, timeout=30).status) == "SERVING"
        # A story that is being made keeps the server for as long as it takes.
        ReflectionClient(channel).call("storyloom.v1.StoryService", "CreateStory", {"story": _long_story()})
        server.process.terminate()
        wait_until(lambda: seen == ["NOT_SERVING", "SERVING", "NOT_SERVING"], 30)
        assert server.process.wait(90) == 0
        reader.join(30)


def _long_story() -> dict[str, Any]:
    return {**STORY, "settings": {"steps": 40, "seed": 7}}


def _follow(watched: Any, seen: list[str], name: Any) -> None:
    """Notes every status until the server is gone."""
    try:
        seen.extend(name(answer.status) for answer in watched)
    except grpc.RpcError:
        return
