"""A running server as its clients see it: stories and what becomes of them, errors, health, reflection."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image

from storyloom.v1 import character_service_pb2 as characters_pb
from storyloom.v1 import character_service_pb2_grpc, model_service_pb2, model_service_pb2_grpc, story_pb2
from storyloom.v1 import story_service_pb2 as pb
from storyloom_model.noise import frame_seed
from tests.server.serving import (
    ServerProcess,
    create,
    ended,
    error_details,
    generate,
    record,
    serving,
    stories,
    story,
    until_step,
    wait_until,
    watch,
)

SERVICES = ("storyloom.v1.StoryService", "storyloom.v1.ModelService", "storyloom.v1.CharacterService")


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Sixteen rows a step, 50 ms a step."""
    with serving(
        tmp_path_factory.mktemp("server"),
        tiny_package,
        *("--max-rows", "16"),
        environment={"STORYLOOM_TEST_STEP_SECONDS": "0.05"},
    ) as running:
        yield running


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


def test_a_reader_that_leaves_may_take_its_story_with_it(server: ServerProcess, channel: grpc.Channel) -> None:
    endless = generate(channel, story(*["a dog"] * 4, steps=100), on_disconnect=pb.DISCONNECT_POLICY_CANCEL)
    story_id = until_step(endless)
    endless.cancel()
    assert ended(channel, story_id).state == pb.STORY_STATE_CANCELLED
    wait_until(lambda: f"job cancelled job_id={story_id}.0 rows_freed=8 open=0" in server.log, 20)


def test_a_story_goes_on_without_its_reader(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(channel, story("a dog", steps=40), request_id="left-alone", timeout=1))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The same request joins the story that the first call made.
    joined = list(generate(channel, story("a dog", steps=40), request_id="left-alone"))
    assert kind(joined[0]) == "accepted"
    assert kind(joined[-1]) == "done"
    assert record(channel, joined[0].story_id).state == pb.STORY_STATE_FINISHED


def test_a_request_id_stands_for_one_request(channel: grpc.Channel) -> None:
    first = create(channel, story("a dog"), request_id="only-once")
    assert create(channel, story("a dog"), request_id="only-once") == first
    with pytest.raises(grpc.RpcError) as caught:
        create(channel, story("a cat"), request_id="only-once")
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert error_details(caught.value)["ErrorInfo"].reason == "REQUEST_ID_REUSED"


def test_a_broken_stream_is_resumed_without_gap_or_repetition(channel: grpc.Channel) -> None:
    call = generate(channel, story("a dog", "a cat", steps=20, preview_interval=3))
    seen = [next(call) for _ in range(6)]
    call.cancel()
    seen += watch(channel, seen[0].story_id, after=seen[-1].sequence)
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert kind(seen[-1]) == "done"
    # Long after, from the store: accepted, frames and done, with the same numbers.
    wait_until(lambda: record(channel, seen[0].story_id).state == pb.STORY_STATE_FINISHED, 20)
    later = list(watch(channel, seen[0].story_id))
    durable = [event for event in seen if kind(event) in ("accepted", "frame", "done")]
    assert [(event.sequence, kind(event)) for event in later] == [(e.sequence, kind(e)) for e in durable]
    assert [e.frame.image.png for e in later if kind(e) == "frame"] == [
        e.frame.image.png for e in durable if kind(e) == "frame"
    ]


def test_many_readers_see_the_same(channel: grpc.Channel) -> None:
    first = generate(channel, story("a dog", steps=10))
    story_id = next(first).story_id
    others = [watch(channel, story_id) for _ in range(5)]
    told = [[event.sequence for event in call] for call in others]
    assert all(sequence == told[0] for sequence in told)
    assert told[0][1:] == [event.sequence for event in first]


def test_stories_are_found_listed_and_cancelled(channel: grpc.Channel) -> None:
    made = [create(channel, story("a dog", steps=100)) for _ in range(3)]
    found = record(channel, made[0])
    assert found.story.settings.steps == 100
    assert found.story.frames[0].seed == frame_seed(7, 0)
    first = stories(channel).ListStories(pb.ListStoriesRequest(page_size=2), timeout=30)
    second = stories(channel).ListStories(
        pb.ListStoriesRequest(page_size=2, page_token=first.next_page_token), timeout=30
    )
    listed = [one.story_id for page in (first, second) for one in page.stories]
    assert listed[:3] == made[::-1]
    for story_id in made:
        stories(channel).CancelStory(pb.CancelStoryRequest(story_id=story_id), timeout=30)
        assert ended(channel, story_id).state == pb.STORY_STATE_CANCELLED
    with pytest.raises(grpc.RpcError) as caught:
        list(watch(channel, made[0]))
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    cancelled = pb.ListStoriesRequest(state=pb.STORY_STATE_CANCELLED, page_size=100)
    assert set(made) <= {one.story_id for one in stories(channel).ListStories(cancelled, timeout=30).stories}


@pytest.mark.parametrize("method", ["GetStory", "WatchStory", "CancelStory", "ExtendStory", "RedoFrame"])
def test_an_unknown_story_is_not_found(channel: grpc.Channel, method: str) -> None:
    request = getattr(pb, f"{method}Request")(story_id="nobody")
    with pytest.raises(grpc.RpcError) as caught:
        list(getattr(stories(channel), method)(request, timeout=30))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert error_details(caught.value)["ResourceInfo"].resource_name == "nobody"


def finished(channel: grpc.Channel, asked: story_pb2.Story) -> pb.StoryRecord:
    return ended(channel, create(channel, asked))


def test_a_finished_story_is_extended(channel: grpc.Channel) -> None:
    parent = finished(channel, cast_story("{mia} walks", "{mia} sits"))
    request = pb.ExtendStoryRequest(
        story_id=parent.story_id,
        frames=[story_pb2.Frame(prompt="{mia} sleeps"), story_pb2.Frame(prompt="{bo} and {mia} dance")],
        new_characters=[story_pb2.Character(name="bo", description="an old man")],
    )
    child = ended(channel, stories(channel).ExtendStory(request, timeout=30).story.story_id)
    assert (child.state, child.parent_story_id) == (pb.STORY_STATE_FINISHED, parent.story_id)
    assert [frame.frame_index for frame in child.frames] == [0, 1, 2, 3]
    assert [frame.reused for frame in child.frames] == [True, True, False, False]
    assert [frame.image.png for frame in child.frames[:2]] == [frame.image.png for frame in parent.frames]
    assert child.frames[2].prompt == "a girl sleeps"
    assert list(child.story.frames)[:2] == list(parent.story.frames)


@pytest.mark.parametrize("seed", [None, 5])
def test_one_frame_is_made_again(channel: grpc.Channel, seed: int | None) -> None:
    parent = finished(channel, cast_story("{mia} walks", "{mia} sits", "{mia} eats"))
    request = pb.RedoFrameRequest(story_id=parent.story_id, frame_index=1, seed=seed)
    child = ended(channel, stories(channel).RedoFrame(request, timeout=30).story.story_id)
    assert [frame.reused for frame in child.frames] == [True, False, True]
    assert child.frames[1].image.png != parent.frames[1].image.png
    assert child.frames[1].seed == (seed if seed is not None else child.story.frames[1].seed)
    assert child.frames[1].seed != parent.frames[1].seed
    assert [child.frames[place].image.png for place in (0, 2)] == [parent.frames[place].image.png for place in (0, 2)]


def test_only_finished_stories_go_on(channel: grpc.Channel) -> None:
    running = create(channel, story("a dog", steps=100))
    with pytest.raises(grpc.RpcError) as caught:
        stories(channel).RedoFrame(pb.RedoFrameRequest(story_id=running), timeout=30)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error_details(caught.value)["ErrorInfo"].reason == "STORY_NOT_FINISHED"
    stories(channel).CancelStory(pb.CancelStoryRequest(story_id=running), timeout=30)


def test_a_long_story_is_made_in_windows(channel: grpc.Channel) -> None:
    asked = cast_story(*["{mia} walks"] * 20, steps=2)
    events = list(generate(channel, asked))
    assert kind(events[-1]) == "done"
    made = [event.frame for event in events if kind(event) == "frame"]
    assert sorted(frame.frame_index for frame in made) == list(range(20))
    # 8 frames, then 6 beside two anchors in each window.
    steps = [event.progress.step for event in events if event.progress.stage == pb.STORY_STAGE_DENOISING]
    assert steps == sorted(steps)
    assert (max(steps), events[2].progress.steps) == (6, 6)
    assert {score.character for score in events[-1].done.consistency} == {"mia"}


def cast_story(*prompts: str, steps: int = 3) -> story_pb2.Story:
    asked = story(*prompts, steps=steps)
    asked.characters.add(name="mia", description="a girl")
    return asked


def test_a_deadline_that_cannot_be_met_is_refused_at_once(channel: grpc.Channel) -> None:
    list(generate(channel, story("a dog", steps=30)))  # So that the server knows how long a step takes.
    request = pb.CreateStoryRequest(story=story("a dog", steps=100))
    request.scheduling.deadline.FromMilliseconds(300)
    with pytest.raises(grpc.RpcError) as caught:
        stories(channel).CreateStory(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    info = error_details(caught.value)["ErrorInfo"]
    assert info.reason == "DEADLINE_UNMEETABLE"
    assert float(info.metadata["estimateMs"]) > 2000  # Its steps alone take five seconds.


def test_bad_terms_are_refused_with_the_story(channel: grpc.Channel) -> None:
    request = pb.CreateStoryRequest(story=story(""), request_id="no spaces, please")
    request.scheduling.deadline.FromSeconds(-1)
    request.scheduling.priority = 9  # type: ignore[assignment]
    with pytest.raises(grpc.RpcError) as caught:
        stories(channel).CreateStory(request, timeout=30)
    assert [violation.field for violation in error_details(caught.value)["BadRequest"].field_violations] == [
        "story.frames[0].prompt",
        "request_id",
        "scheduling.deadline",
        "scheduling.priority",
    ]


def test_kept_characters_are_used_by_id(channel: grpc.Channel) -> None:
    stub: Any = character_service_pb2_grpc.CharacterServiceStub(channel)
    kept = stub.CreateCharacter(
        characters_pb.CreateCharacterRequest(name="mia", description="a girl with red hair"), timeout=30
    ).character
    asked = story("{heroine} walks")
    asked.characters.add(name="heroine", character_id=kept.character_id)
    (frame,) = [event.frame for event in generate(channel, asked) if kind(event) == "frame"]
    assert frame.prompt == "a girl with red hair walks"
    listed = stub.ListCharacters(characters_pb.ListCharactersRequest(), timeout=30).characters
    assert [(one.character_id, one.name) for one in listed] == [(kept.character_id, "mia")]
    stub.DeleteCharacter(characters_pb.DeleteCharacterRequest(character_id=kept.character_id), timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(channel, asked))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert error_details(caught.value)["ErrorInfo"].reason == "CHARACTER_NOT_FOUND"


def test_a_full_server_refuses_before_anything_is_sent(tiny_package: Path, tmp_path: Path) -> None:
    slow = {"STORYLOOM_TEST_STEP_SECONDS": "0.05"}
    with (
        serving(tmp_path, tiny_package, "--max-active", "1", "--max-queue", "2", environment=slow) as small,
        grpc.insecure_channel(small.address) as channel,
    ):
        calls = [generate(channel, story("a dog", steps=100))]
        until_step(calls[0])
        calls += [generate(channel, story("a cat", steps=2)) for _ in range(2)]
        assert [next(call).accepted.queue_position for call in calls[1:]] == [0, 1]
        refused = generate(channel, story("a bird"))
        with pytest.raises(grpc.RpcError) as caught:
            next(refused)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Trailers only: no metadata came before, so that a client's retry policy may act.
        assert not refused.initial_metadata()
        details = error_details(caught.value)
        assert details["ErrorInfo"].reason == "QUEUE_FULL"
        assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
        assert [kind(list(call)[-1]) for call in calls] == ["done"] * 3


def test_a_story_over_the_message_limit_is_refused(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(channel, story("a" * (17 * 1024 * 1024))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert kind(list(generate(channel, story("a dog", steps=1)))[-1]) == "done"


def test_models_are_described(channel: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    (model,) = stub.ListModels(model_service_pb2.ListModelsRequest(), timeout=30).models
    assert (model.name, model.is_default) == ("tiny", True)
    assert [(size.width, size.height) for size in model.sizes] == [(64, 64), (96, 64)]
    assert list(model.adapters) == ["amsa-mask", "amsa", "none"]
    assert list(model.methods) == ["storynizor", "storydiffusion", "consistory", "oneprompt", "fastcomposer"]
    assert list(model.solvers) == [story_pb2.SOLVER_DDIM, story_pb2.SOLVER_EULER, story_pb2.SOLVER_UNIPC]
    assert (model.limits.max_frames, model.limits.window_frames, model.limits.max_prompt_tokens) == (240, 8, 77)
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
