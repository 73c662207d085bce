"""Poses through a real server: which are taken, that they reach the frames, and that they are kept with the story."""

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from storyloom.v1 import model_service_pb2, model_service_pb2_grpc, story_pb2
from storyloom.v1 import story_service_pb2 as pb
from tests.server.casts import GREEN, PINK, cast_story, made, picture, pictures_of, refusal
from tests.server.fuzzing import png_that_claims
from tests.server.serving import (
    create,
    ended,
    error_details,
    record,
    serving,
    stories,
    story,
    until_step,
    watch,
)


@pytest.fixture(scope="module")
def server(pose_package: Path, tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Serves a model that takes poses, and one that takes none."""
    with serving(tmp_path_factory.mktemp("poses"), pose_package, "--model", str(tiny_package)) as running:
        yield running


def posed(asked: story_pb2.Story, data: bytes, *, frame: int = 0, **fields: Any) -> story_pb2.Story:
    asked.frames[frame].pose.CopyFrom(story_pb2.Pose(picture=data, **fields))
    return asked


def test_a_pose_reaches_its_frame_alone(channel: grpc.Channel) -> None:
    plain = made(channel, story())
    green, pink = (made(channel, posed(story(), picture(colour))) for colour in (GREEN, PINK))
    assert len({plain[0], green[0], pink[0]}) == 3
    assert plain[1] == green[1] == pink[1]
    weak = made(channel, posed(story(), picture(GREEN), strength=0.5))
    named = made(channel, posed(story(), picture(GREEN), controlnet="skeleton"))
    assert weak[0] not in (plain[0], green[0])
    assert named == green


def test_pictures_are_made_alike_before_the_model_sees_them(channel: grpc.Channel) -> None:
    """Other sizes, EXIF, transparency: what counts is what people see, at the frame's size."""
    upright = Image.new("RGB", (32, 64), GREEN)
    upright.paste(PINK, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = io.BytesIO(), io.BytesIO()
    upright.rotate(90, expand=True).save(turned, "PNG", exif=exif)
    upright.save(plain, "PNG")
    assert made(channel, posed(story(), turned.getvalue())) == made(channel, posed(story(), plain.getvalue()))
    small, large = (made(channel, posed(story(), picture(GREEN, size=size))) for size in ((20, 30), (200, 100)))
    assert small == large == made(channel, posed(story(), picture((0, 128, 0, 255), form="PNG")))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"hello", "is not a PNG, JPEG or WebP file"),
        (picture()[:60], "damaged or cut off"),
        (png_that_claims(20_000, 20_000), "far too many pixels"),
        (png_that_claims(2100, 2000), "4 megapixels are allowed"),
        (picture(size=(8, 8)), "16 are needed"),
    ],
    ids=["empty", "text", "cut", "bomb", "large", "tiny"],
)
def test_bad_pictures_are_refused(channel: grpc.Channel, data: bytes, told: str) -> None:
    code, found = refusal(channel, posed(story(), data, frame=1))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert told in found["story.frames[1].pose.picture"]
    assert len(found) == 1


def test_what_a_model_cannot_do_is_told(channel: grpc.Channel) -> None:
    asked = posed(posed(story(), picture(), strength=float("nan")), b"hello", frame=1, controlnet="nobody")
    _, found = refusal(channel, asked)
    assert "nan is no strength; use 0 (none) to 2" in found["story.frames[0].pose.strength"]
    assert "poses has no such ControlNet; use one of skeleton, face" in found["story.frames[1].pose.controlnet"]
    assert "is not a PNG" in found["story.frames[1].pose.picture"]
    asked.settings.model = "tiny"
    _, found = refusal(channel, asked)
    assert found["story.frames[0].pose"] == "tiny takes no poses; use poses, or leave it out"
    _, found = refusal(channel, posed(story(), picture(), controlnet="face"))
    assert "no character of the frame has references; add some" in found["story.frames[0].pose"]
    aside = posed(cast_story(picture()), picture(), controlnet="face")
    aside.settings.identity_adapter = "none"
    _, found = refusal(channel, aside)
    assert "needs settings.identity_adapter storynizor" in found["story.frames[0].pose"]
    faces = posed(cast_story(picture()), picture(), controlnet="face")
    assert made(channel, faces)[0] != made(channel, cast_story(picture()))[0]


def test_models_say_what_they_take(channel: grpc.Channel) -> None:
    stub: Any = model_service_pb2_grpc.ModelServiceStub(channel)
    listed = stub.ListModels(model_service_pb2.ListModelsRequest(), timeout=30).models
    kinds = {model.name: {each.name: each.kind for each in model.controlnets} for model in listed}
    expected = {"skeleton": story_pb2.CONTROL_KIND_POSE, "face": story_pb2.CONTROL_KIND_IDENTITYNET}
    assert kinds == {"poses": expected, "tiny": {}}


def test_what_follows_from_a_story_has_its_poses(channel: grpc.Channel) -> None:
    """Records say that there was a pose; the server knows which."""
    asked = posed(story("a dog", "a cat"), picture(GREEN), strength=0.5)
    first = ended(channel, create(channel, asked))
    assert first.story.frames[0].HasField("pose")
    assert (first.story.frames[0].pose.picture, first.story.frames[0].pose.strength) == (b"", 0.5)
    again = pb.RedoFrameRequest(story_id=first.story_id, frame_index=0, seed=first.frames[0].seed)
    redone = ended(channel, stories(channel).RedoFrame(again, timeout=30).story.story_id)
    more = pb.ExtendStoryRequest(
        story_id=redone.story_id, frames=[{"prompt": "a bird", "pose": {"picture": picture(PINK)}}]
    )
    extended = ended(channel, stories(channel).ExtendStory(more, timeout=30).story.story_id)
    assert extended.state == pb.STORY_STATE_FINISHED
    bare = pb.RedoFrameRequest(story_id=extended.story_id, frame_index=0, frame={"prompt": "a dog"}, seed=3)
    posed_again = pb.RedoFrameRequest(story_id=extended.story_id, frame_index=0, seed=3)
    results = [
        ended(channel, stories(channel).RedoFrame(request, timeout=30).story.story_id)
        for request in (bare, posed_again)
    ]
    assert results[0].frames[0].image.png != results[1].frames[0].image.png
    bad = pb.ExtendStoryRequest(story_id=first.story_id, frames=[{"prompt": "a", "pose": {"picture": b"hello"}}])
    with pytest.raises(grpc.RpcError) as caught:
        stories(channel).ExtendStory(bad, timeout=30)
    (violation,) = error_details(caught.value)["BadRequest"].field_violations
    assert violation.field == "frames[0].pose.picture"


def test_a_pose_outlives_the_server(channel: grpc.Channel, pose_package: Path, tmp_path: Path) -> None:
    asked = posed(story("a dog", steps=30), picture(GREEN))
    expected = made(channel, asked)
    state = ("--state-folder", str(tmp_path / "state"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    slow = {"STORYLOOM_TEST_STEP_SECONDS": "0.1"}
    with (
        serving(tmp_path / "first", pose_package, *state, environment=slow) as first,
        grpc.insecure_channel(first.address) as opened,
    ):
        story_id = create(opened, asked)
        until_step(watch(opened, story_id), 2)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(30)
    with (
        serving(tmp_path / "second", pose_package, *state) as second,
        grpc.insecure_channel(second.address) as opened,
    ):
        assert pictures_of(list(watch(opened, story_id))) == expected
        assert record(opened, story_id).state == pb.STORY_STATE_FINISHED
