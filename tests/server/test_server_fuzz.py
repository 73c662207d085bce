"""Ten thousand requests that nobody should send: each gets a well-formed answer, and the server is none the worse."""

import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from storyloom.v1 import (
    character_service_pb2,
    character_service_pb2_grpc,
    model_service_pb2,
    story_pb2,
    story_service_pb2,
)
from tests.server.casts import picture
from tests.server.fuzzing import Maker, hostile_bytes, mutated
from tests.server.processes import resident_bytes
from tests.server.serving import ServerProcess, generate, serving, story

REQUESTS = 10_000
IN_FLIGHT = 64
SEED = 20261121
# A server without a leak needs a few MiB more for what it caches: prompts, connections, prepared statements.
MAX_GROWTH = 64 * 1024 * 1024
METHODS: list[MethodDescriptor] = [
    method
    for file, name in (
        (story_service_pb2, "StoryService"),
        (model_service_pb2, "ModelService"),
        (character_service_pb2, "CharacterService"),
    )
    for method in file.DESCRIPTOR.services_by_name[name].methods
]
DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True)
class Sent:
    """A request and where it went."""

    method: MethodDescriptor
    data: bytes

    @property
    def message(self) -> Message | None:
        """What the server should read; None for bytes that are no message of the method."""
        try:
            return GetMessageClass(self.method.input_type).FromString(self.data)
        except DecodeError:
            return None


@pytest.fixture(scope="module")
def server(
    tiny_package: Path, identity_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    arguments = ("--admin", "--model", str(identity_package))
    with serving(tmp_path_factory.mktemp("fuzz"), tiny_package, *arguments) as running:
        yield running


@pytest.mark.slow
def test_ten_thousand_bad_requests(server: ServerProcess) -> None:
    engine_pid = server.engine_pid
    draw = random.Random(SEED)  # noqa: S311 - no secrets here
    with grpc.insecure_channel(server.address) as channel:
        maker = maker_for(channel, draw)
        send(channel, [make(draw, maker) for _ in range(REQUESTS // 5)])
        before = resident_bytes(server.process.pid), resident_bytes(engine_pid)
        codes = send(channel, [make(draw, maker) for _ in range(REQUESTS - REQUESTS // 5)])
        after = resident_bytes(server.process.pid), resident_bytes(engine_pid)
        assert server.process.poll() is None
        assert server.engine_pid == engine_pid, "the engine was started again"
        assert [event.WhichOneof("event") for event in generate(channel, story())][-1] == "done"
    # They neither all failed at the first hurdle nor all got through.
    for method in ("CreateStory", "ExtendStory", "RedoFrame", "WatchStory", "CreateCharacter"):
        assert codes[method, "OK"], codes
        assert codes[method, "INVALID_ARGUMENT"], codes
    assert all(now - earlier < MAX_GROWTH for earlier, now in zip(before, after, strict=True)), (before, after)


@pytest.mark.parametrize("path", ["/", "/nothing", "/storyloom.v1.StoryService/", "/storyloom.v1.StoryService/Nothing"])
def test_methods_that_do_not_exist(server: ServerProcess, path: str) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def maker_for(channel: grpc.Channel, draw: random.Random) -> Maker:
    """Knows a small story, a kept character and a finished story of the server."""
    asked = story_pb2.Story(
        characters=[story_pb2.Character(name="mia", description="a girl")],
        frames=[story_pb2.Frame(prompt="{mia} walks"), story_pb2.Frame(prompt="a dog")],
        settings=story_pb2.Settings(steps=1),
    )
    finished = list(generate(channel, asked))[-1].story_id
    new = character_service_pb2.CreateCharacterRequest(name="mia", description="a girl")
    kept = character_service_pb2_grpc.CharacterServiceStub(channel).CreateCharacter(new, timeout=60).character
    seen = story_pb2.Story()
    seen.CopyFrom(asked)
    seen.settings.model = "identity"
    seen.characters[0].references.add(picture=picture())
    requests: list[Message] = [
        asked,
        seen.characters[0].references[0],
        character_service_pb2.CreateCharacterRequest(name="mia", reference_pictures=seen.characters[0].references),
        story_service_pb2.GenerateStoryRequest(story=asked),
        story_service_pb2.CreateStoryRequest(story=seen),
        story_service_pb2.ExtendStoryRequest(story_id=finished, frames=asked.frames),
        story_service_pb2.RedoFrameRequest(story_id=finished, frame_index=1),
        story_service_pb2.WatchStoryRequest(story_id=finished),
        story_service_pb2.GetStoryRequest(story_id=finished, include_images=True),
    ]
    sound = {message.DESCRIPTOR.full_name: message for message in requests}
    return Maker(draw, sound, [finished, kept.character_id, "tiny", "identity", "storynizor"])


def make(draw: random.Random, maker: Maker) -> Sent:
    """A request to some method: mostly a random message, whole or mutated; at times no message at all."""
    method = draw.choice(METHODS)
    chance = draw.random()
    if chance < 0.25:
        return Sent(method, hostile_bytes(draw, method.input_type))
    data = maker.message(method.input_type).SerializeToString()
    return Sent(method, data if chance < 0.5 else mutated(draw, data))


def send(channel: grpc.Channel, requests: list[Sent]) -> Counter[tuple[str, str]]:
    """Sends them, many at once, and checks every answer; counts the codes of each method."""
    free = threading.Semaphore(IN_FLIGHT)
    calls = []
    for sent in requests:
        free.acquire()
        call = start(channel, sent)
        call.add_done_callback(lambda _: free.release())
        calls.append((sent, call))
    return Counter((sent.method.name, check(sent, call)) for sent, call in calls)


def start(channel: grpc.Channel, sent: Sent) -> Any:
    """A call under way. A stream is read by a thread of its own, which the call's callback does not wait for."""
    path = f"/{sent.method.containing_service.full_name}/{sent.method.name}"
    if not sent.method.server_streaming:
        return channel.unary_unary(path).future(sent.data, timeout=60)
    call: Any = channel.unary_stream(path)(sent.data, timeout=60)
    threading.Thread(target=drain, args=(call,), daemon=True).start()
    return call


def drain(call: Any) -> None:
    try:
        for answer in call:
            story_service_pb2.GenerateStoryResponse.FromString(answer)
    except grpc.RpcError:
        return  # ``check`` looks at it.


def check(sent: Sent, call: Any) -> str:
    """Fails the test unless the call ended as it should; the name of its code."""
    code: grpc.StatusCode = call.code()
    packed = dict(call.trailing_metadata() or ()).get(DETAILS)
    told = f"{sent.method.name} {sent.data[:80]!r}: {code.name} {call.details()}"
    if code is grpc.StatusCode.OK:
        assert sent.message is not None, told
    else:
        assert packed is not None, told
        reason = check_status(status_pb2.Status.FromString(packed), code, str(call.details()), told)
        assert (reason == "UNDECODABLE_REQUEST") == (sent.message is None), told
    return code.name


def check_status(status: status_pb2.Status, code: grpc.StatusCode, message: str, told: str) -> str:
    """Fails the test unless the status has all that it should; its reason."""
    assert (status.code, status.message) == (code.value[0], message), told
    assert status.message, told
    kinds = [packed.type_url.rsplit(".", 1)[1] for packed in status.details]
    assert kinds.count("ErrorInfo") == 1, told
    assert len(set(kinds)) == len(kinds), told
    info = error_details_pb2.ErrorInfo()
    assert any(packed.Unpack(info) for packed in status.details), told
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", info.reason), told
    assert info.domain == "storyloom.dev", told
    return str(info.reason)
