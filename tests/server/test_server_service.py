"""A running server as its clients see it: events, errors, health, reflection, cancellation, a full queue."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image

from storyloom.v1 import model_service_pb2, model_service_pb2_grpc, story_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.noise import frame_seed
from tests.server.serving import ServerProcess, error_details, generate, serving, story, wait_until

SERVICES = ("storyloom.v1.StoryService", "storyloom.v1.ModelService")


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Eight rows a step, two stories waiting, 50 ms a step."""
    with serving(
        tmp_path_factory.mktemp("server"),
        tiny_package,
        *("--max-rows", "8", "--max-queue", "2"),
        environment={"STORYLOOM_TEST_STEP_SECONDS": "0.05"},
    ) as running:
        yield running


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def kind(event: pb.GenerateStoryResponse) -> str:
    return event.WhichOneof("event") or "nothing"


def test_events_come_in_order_and_are_numbered(channel: grpc.Channel) -> None:
    events = list(generate(channel, story("a dog", "a cat", steps=4, preview_interval=2)))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len({event.story_id for event in events}) == 1
    assert [kind(event) for event in events] == [
        "accepted",
        *["progress"] * 4,
        *["preview"] * 2,
        *["progress"] * 3,
        *["frame"] * 2,
        "done",
    ]
    stages = [(event.progress.stage, event.progress.step) for event in events if kind(event) == "progress"]
    denoising = pb.STORY_STAGE_DENOISING
    assert stages == [
        (pb.STORY_STAGE_ENCODING, 0),
        *[(denoising, step) for step in range(5)],
        (pb.STORY_STAGE_DECODING, 4),
    ]
    accepted = events[0].accepted
    assert accepted.settings.steps == 4
    assert accepted.settings.consistency.adapter == "amsa-mask"
    assert list(accepted.frame_seeds) == [frame_seed(7, 0), frame_seed(7, 1)]
    timings = events[-1].done.timings
    assert timings.denoise_seconds >= 0.2
    parts = timings.queued_seconds + timings.encode_seconds + timings.denoise_seconds + timings.decode_seconds
    assert timings.total_seconds == pytest.approx(parts, abs=0.5)


def test_pictures_are_png_files_that_say_where_they_come_from(channel: grpc.Channel) -> None:
    events = list(generate(channel, story("a dog", "a cat")))
    frames = [event.frame for event in events if kind(event) == "frame"]
    assert [(frame.frame_index, frame.prompt) for frame in frames] == [(0, "a dog"), (1, "a cat")]
    for index, frame in enumerate(frames):
        assert frame.seed == frame_seed(7, index)
        with Image.open(io.BytesIO(frame.image.png)) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
            assert (frame.image.width, frame.image.height) == (64, 64)
            written = picture.info
        assert written["Software"] == "Storyloom"
        assert written["Source"] == "AI-generated"
        assert written["Model"] == "tiny"
        assert written["Seed"] == str(frame.seed)


def test_a_bad_story_is_refused_with_every_violation(channel: grpc.Channel) -> None:
    call = generate(channel, story("", "{bob} walks", steps=0))
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = error_details(caught.value)
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("INVALID_STORY", "storyloom.dev")
    assert [violation.field for violation in details["BadRequest"].field_violations] == [
        "story.frames[0].prompt",
        "story.frames[1].prompt",
        "story.settings.steps",
    ]


@pytest.mark.parametrize(("word", "reason"), [("raise-step", "ENGINE_ERROR"), ("diverge", "STORY_DIVERGED")])
def test_a_failing_story_ends_alone(channel: grpc.Channel, word: str, reason: str) -> None:
    good = generate(channel, story("a dog", steps=10))
    assert kind(next(good)) == "accepted"
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(channel, story(f"a {word} cat")))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert error_details(caught.value)["ErrorInfo"].reason == reason
    assert kind(list(good)[-1]) == "done"


def test_a_cancelled_story_makes_room_at_once(server: ServerProcess, channel: grpc.Channel) -> None:
    endless = generate(channel, story(*["a dog"] * 4, steps=100))
    story_id = next(event.story_id for event in endless if kind(event) == "progress" and event.progress.step == 1)
    waiting = generate(channel, story("a cat", steps=1))
    assert next(waiting).accepted.queue_position == 0
    began = time.monotonic()
    endless.cancel()
    assert kind(list(waiting)[-1]) == "done"
    # The first story would have held the batch for another five seconds.
    assert time.monotonic() - began < 4
    wait_until(lambda: f"story cancelled story_id={story_id} rows_freed=8 rows_in_use=0" in server.log, 20)


def test_a_deadline_cancels_too(server: ServerProcess, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(channel, story("a dog", steps=100), timeout=2))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: "rows_freed=2 rows_in_use=0 open=0" in server.log, 20)


def test_a_full_queue_refuses_before_anything_is_sent(channel: grpc.Channel) -> None:
    calls = [generate(channel, story(*["a dog"] * 4, steps=100))]
    while True:
        event = next(calls[0])
        if kind(event) == "progress":
            break
    for position in range(2):
        calls.append(generate(channel, story("a cat")))
        assert next(calls[-1]).accepted.queue_position == position
    refused = generate(channel, story("a bird"))
    with pytest.raises(grpc.RpcError) as caught:
        next(refused)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Trailers only: no metadata came before, so that a client's retry policy may act.
    assert not refused.initial_metadata()
    details = error_details(caught.value)
    assert details["ErrorInfo"].reason == "QUEUE_FULL"
    assert details["RetryInfo"].retry_delay.seconds == 5
    calls[0].cancel()
    assert kind(list(calls[1])[-1]) == "done"
    progress = [event.progress for event in calls[2] if kind(event) == "progress"]
    assert [p.queue_position for p in progress if p.stage == pb.STORY_STAGE_QUEUED] == [0]


def test_a_story_over_the_message_limit_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(channel, story("a" * (5 * 1024 * 1024))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert kind(list(generate(channel, story("a dog", steps=1)))[-1]) == "done"


def test_models_are_described(channel: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    (model,) = stub.ListModels(model_service_pb2.ListModelsRequest(), timeout=30).models
    assert (model.name, model.is_default) == ("tiny", True)
    assert [(size.width, size.height) for size in model.sizes] == [(64, 64), (96, 64)]
    assert list(model.adapters) == ["amsa-mask", "amsa", "none"]
    assert list(model.solvers) == [story_pb2.SOLVER_DDIM, story_pb2.SOLVER_EULER, story_pb2.SOLVER_UNIPC]
    assert (model.limits.max_frames, model.limits.max_prompt_tokens) == (12, 77)
    assert model.defaults.steps == 4
    # What is said to be the default is accepted when asked for.
    asked = story("a dog")
    asked.settings.MergeFrom(model.defaults)
    assert kind(list(generate(channel, asked))[-1]) == "done"


def test_health_and_reflection(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", *SERVICES):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
    method = DescriptorPool(database).FindServiceByName(SERVICES[0]).methods_by_name["GenerateStory"]
    assert method.output_type.full_name == "storyloom.v1.GenerateStoryResponse"


def test_logs_tell_stories_apart_and_never_quote_them(server: ServerProcess, channel: grpc.Channel) -> None:
    events = list(generate(channel, story("a very secret dog")))
    story_id = events[0].story_id
    wait_until(lambda: f"story closed story_id={story_id} outcome=done" in server.log, 20)
    assert f"story accepted story_id={story_id} model=tiny frames=1" in server.log
    assert "secret" not in server.log
