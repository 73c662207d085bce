"""Poses of frames: where pictures may come from, what is sent of them, and what is wrong with them before that."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from storyloom import ControlKind, Frame, Pose, Story, StoryFileError, StoryResult
from storyloom._story_file import load_story_file
from storyloom._wire import story_from, story_message
from storyloom.v1 import story_pb2
from tests.clients.blocking import Connect
from tests.clients.scripted import ScriptedServer
from tests.clients.scripts import png

WAVING, SITTING = png((200, 0, 0)), png((255, 255, 255))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture beside the story file."""
    (tmp_path / "poses").mkdir()
    (tmp_path / "poses" / "waving.png").write_bytes(WAVING)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def write(folder: Path, pose: str) -> Path:
    file = folder / "story.yaml"
    file.write_text(f"frames:\n  - a dog\n  - prompt: a girl waves\n    pose: {pose}\n")
    return file


def test_a_file_names_a_picture_beside_it(pictures: Path) -> None:
    for written in ("poses/waving.png", f"{{picture: {pictures}/poses/waving.png}}"):
        frames = Story.load(write(pictures, written)).frames
        assert (frames[0].pose, frames[1].pose) == (None, Pose(picture=WAVING))
    written = "{picture: poses/waving.png, strength: 0.5, controlnet: openpose}"
    assert Story.load(write(pictures, written)).frames[1].pose == Pose(
        picture=WAVING, strength=0.5, controlnet="openpose"
    )
    image = Frame(prompt="a", pose=Image.new("RGB", (8, 8)))  # type: ignore[arg-type]
    assert image.pose is not None
    assert "\\x" not in repr(image), "pictures are not printed"


@pytest.mark.parametrize(
    ("pose", "problem"),
    [
        ("none.png", "4:5: frames[1].pose.picture: {0}/none.png cannot be read: No such file"),
        ("notes.txt", "notes.txt is not a PNG, JPEG or WebP picture"),
        ("7", "should be the path of a picture"),
        ("{picture: poses/waving.png, strenght: 1}", 'unknown key "strenght"; did you mean "strength"?'),
        ("{picture: poses/waving.png, strength: 3}", "frames[1].pose.strength: should be less than or equal to 2"),
        ("{strength: 1}", 'the key "picture" is missing'),
    ],
)
def test_what_is_wrong_in_a_file_is_told(pictures: Path, pose: str, problem: str) -> None:
    with pytest.raises(StoryFileError) as caught:
        Story.load(write(pictures, pose))
    assert problem.format(pictures) in str(caught.value).replace(f"{pictures / 'story.yaml'}:", "")


def test_refused_poses_are_found_in_the_file(pictures: Path) -> None:
    short = load_story_file(write(pictures, "poses/waving.png"))
    assert short.locate("story.frames[1].pose.picture") == (4, 5)
    assert short.locate("story.frames[1].pose") == (4, 5)
    long = load_story_file(write(pictures, "\n      picture: poses/waving.png\n      strength: 1.5"))
    assert long.locate("story.frames[1].pose.picture") == (5, 7)
    assert long.locate("story.frames[1].pose.strength") == (6, 7)
    assert long.locate("story.frames[1].pose.controlnet") is None


poses = st.builds(
    Pose,
    picture=st.sampled_from([WAVING, SITTING]),
    strength=st.integers(0, 200).map(lambda percent: percent / 100),
    controlnet=st.sampled_from(["", "openpose"]),
)


@given(st.none() | poses)
def test_what_is_sent_comes_back(pose: Pose | None) -> None:
    sent = Story(frames=(Frame(prompt="a girl waves", pose=pose), "a dog"))
    message = story_pb2.Story.FromString(story_message(sent).SerializeToString())
    assert story_from(message).frames == sent.frames
    assert sent.with_settings(steps=3).frames == sent.frames


def test_a_servers_word_of_a_pose_cannot_be_sent_again_as_it_is() -> None:
    message = story_message(Story(frames=(Frame(prompt="a girl", pose=Pose(picture=WAVING)),)))
    message.frames[0].pose.ClearField("picture")
    told = story_from(message)
    assert told.frames[0].pose == Pose.model_construct(picture=b"", strength=1.0, controlnet="")
    with pytest.raises(ValidationError, match="give the picture again"):
        told.with_settings(steps=3)


def test_poses_reach_the_server_and_models_say_what_they_take(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    asked = Story(frames=(Frame(prompt="a girl waves", pose=Pose(picture=WAVING, strength=0.5)),))
    with connect(server.address) as client:
        result = client.generate(asked)
        (frame,) = server.requests[-1].story.frames
        assert (frame.pose.picture, frame.pose.strength, frame.pose.controlnet) == (WAVING, 0.5, "")
        assert client.get_model().controlnets == {"openpose": ControlKind.POSE, "later": None}
    result.save(tmp_path / "out")
    assert '"poses": {\n    "0": "' in (tmp_path / "out" / "story.json").read_text()
    assert StoryResult.load(tmp_path / "out").story.frames == (Frame(prompt="a girl waves"),)
