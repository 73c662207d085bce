"""Reference pictures: where they may come from, what is sent of them, and what is wrong with them before that."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from storyloom import Blend, Character, InvalidRequest, Keep, Reference, Role, Story, StoryFileError, StoryResult
from storyloom._story_file import load_story_file
from storyloom._wire import story_from, story_message
from storyloom.cli._app import app
from storyloom.v1 import story_pb2
from tests.clients.blocking import Connect
from tests.clients.scripted import ScriptedServer
from tests.clients.scripts import png

MIA, MASK = png((200, 0, 0)), png((255, 255, 255))


def story(**character: Any) -> Story:
    cast = {"mia": {"description": "a girl", **character}}
    return Story.model_validate({"characters": cast, "frames": ["{mia} walks"]})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with pictures beside each other."""
    (tmp_path / "mia.png").write_bytes(MIA)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "mia.png").write_bytes(MASK)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def write(folder: Path, *lines: str) -> Path:
    file = folder / "story.yaml"
    cast = "\n".join(f"    {line}" for line in lines)
    file.write_text(f'characters:\n  mia:\n    description: a girl\n{cast}\nframes:\n  - "{{mia}} walks"\n')
    return file


def test_a_picture_may_be_a_path_bytes_or_an_image(pictures: Path) -> None:
    path = pictures / "mia.png"
    for given_as in (path, str(path), MIA, bytearray(MIA), {"picture": path}, Reference(picture=MIA)):
        assert story(references=[given_as]).characters["mia"].references == (Reference(picture=MIA),)
    image = Image.open(path)
    (from_image,) = Character(description="a girl", references=(image,)).references  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(from_image.picture)).tobytes() == image.tobytes()
    assert "\\x" not in repr(from_image), "pictures are not printed"


def test_a_story_file_names_pictures_beside_it(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(
        pictures,
        "references: [mia.png, {picture: mia.png, mask: masks/mia.png}, {picture: mia.png, role: clothes}]",
        "keep: [face, hair]",
        "identity_scale: 0.8",
        "blend: {id: character-7, weight: 0.25}",
    )
    monkeypatch.chdir(os.sep)
    mia = Story.load(file).characters["mia"]
    assert mia == Character(
        description="a girl",
        references=(
            Reference(picture=MIA),
            Reference(picture=MIA, mask=MASK),
            Reference(picture=MIA, role=Role.CLOTHES),
        ),
        keep=(Keep.FACE, Keep.HAIR),
        identity_scale=0.8,
        blend=Blend(id="character-7", weight=0.25),
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "references: [nobody.png]",
            "4:18: characters.mia.references[0].picture: {0}/nobody.png cannot be read: No such",
        ),
        ("references: [.]", "4:18: characters.mia.references[0].picture: {0} cannot be read: Is a directory"),
        ("references: [notes.txt]", "notes.txt is not a PNG, JPEG or WebP picture"),
        ("references: [{picture: mia.png, mask: notes.txt}]", "references[0].mask: notes.txt is not a PNG"),
        ("references: [{picture: mia.png, mark: mia.png}]", 'unknown key "mark"; did you mean "mask"?'),
        ("references: [{mask: mia.png}]", 'the key "picture" is missing'),
        ("references: [7]", "should be the path of a picture"),
        ("references: mia.png", "characters.mia.references: should be a list"),
        ("references: [{picture: mia.png, role: hat}]", "should be 'character' or 'clothes'"),
        ("id: x\nkeep: [nose]", "5:12: characters.mia.keep[0]: should be 'face', 'hair', 'clothes' or 'body'"),
        ("identity_scale: 0.5", "no references for them"),
        ("blend: {id: x, weigth: 1}", 'unknown key "weigth"; did you mean "weight"?'),
    ],
)
def test_what_is_wrong_in_a_file_is_told(pictures: Path, line: str, problem: str) -> None:
    with pytest.raises(StoryFileError) as caught:
        Story.load(write(pictures, *line.split("\n")))
    told = str(caught.value).replace(f"{pictures / 'story.yaml'}:", "")
    assert problem.format(pictures) in told


def test_refused_references_are_found_in_the_file(pictures: Path) -> None:
    lines = ("references: [mia.png,", "  {picture: mia.png}]", "keep: [face]", "identity_scale: 0.8", "blend: {id: x}")
    file = load_story_file(write(pictures, *lines))
    places = {
        "references[1]": 5,
        "references[1].mask": None,
        "identity.keep[0]": 6,
        "identity.scale": 7,
        "identity.blend.character_id": 8,
    }
    for field, line in places.items():
        mark = file.locate(f"story.characters[0].{field}")
        assert (mark and mark.line) == line, field


names = st.sampled_from([MIA, MASK])
references = st.builds(Reference, picture=names, mask=st.none() | names, role=st.sampled_from(Role))
characters = st.builds(
    Character,
    description=st.just("a girl"),
    references=st.lists(references, min_size=1, max_size=3).map(tuple),
    keep=st.lists(st.sampled_from(Keep), max_size=2, unique=True).map(tuple),
    identity_scale=st.none() | st.integers(0, 200).map(lambda percent: percent / 100),
    blend=st.none() | st.builds(Blend, id=st.just("x"), weight=st.integers(0, 100).map(lambda percent: percent / 100)),
)


@given(characters)
def test_what_is_sent_comes_back(mia: Character) -> None:
    sent = Story(characters={"mia": mia}, frames=("{mia} walks",))  # type: ignore[arg-type]
    message = story_pb2.Story.FromString(story_message(sent).SerializeToString())
    assert story_from(message).characters == sent.characters
    assert sent.with_settings(steps=3).characters == sent.characters
    inked = sent.with_settings(loras={"ink": 0.7, "wash": -2})
    assert story_from(story_message(inked)).settings.loras == {"ink": 0.7, "wash": -2}


def test_a_servers_word_of_a_story_cannot_be_sent_again_as_it_is() -> None:
    message = story_message(story(references=[MIA]))
    message.characters[0].references[0].ClearField("picture")
    with pytest.raises(ValidationError, match="give the picture again"):
        story_from(message).with_settings(steps=3)


def test_references_reach_the_server_and_its_notes_the_caller(connect: Connect, server: ScriptedServer) -> None:
    server.reference_notes = ["reference 1: 3 faces; the largest was taken"]
    with connect(server.address) as client:
        made = client.create_character("mia", references=[MIA, Reference(picture=MIA, mask=MASK)])
        assert (made.references, made.reference_notes) == (2, tuple(server.reference_notes))
        sent = server.calls[-1][1]
        assert [(each.picture, each.mask) for each in sent.reference_pictures] == [(MIA, b""), (MIA, MASK)]
        client.create_character("mia", references=[MIA])
        assert list(server.calls[-1][1].references) == [MIA], "as older servers know it"
        with pytest.raises(ValidationError, match="not a PNG, JPEG or WebP"):
            client.create_character("mia", references=[b"no picture"])
        client.generate(story(references=[MIA], keep=["face"]))
        (mia,) = server.requests[-1].story.characters
        assert (mia.references[0].picture, list(mia.identity.keep)) == (MIA, [story_pb2.IDENTITY_PART_FACE])
        assert client.get_model().identity_adapters == {"storynizor": (Keep.FACE,)}
        assert client.get_model().loras == ("ink", "wash")


def test_too_large_a_request_is_told_before_it_is_sent(connect: Connect, server: ScriptedServer) -> None:
    noise = io.BytesIO()
    Image.frombytes("RGB", (1300, 1300), os.urandom(1300 * 1300 * 3)).save(noise, "PNG")
    large = story(references=[noise.getvalue()])
    server.max_request_bytes = len(noise.getvalue())
    with connect(server.address) as client:
        for call in (
            lambda: client.generate(large),
            lambda: client.create_story(large),
            lambda: client.create_character("mia", references=[noise.getvalue()] * 2),
        ):
            with pytest.raises(InvalidRequest, match=r"has \d+\.\d MiB with its pictures"):
                call()
        assert {method for method, _ in server.calls} == {"GetModel"}


def test_results_are_saved_without_the_callers_pictures(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    with connect(server.address) as client:
        result = client.generate(story(references=[MIA], identity_scale=0.5))
    result.save(tmp_path / "out")
    record = (tmp_path / "out" / "story.json").read_text()
    assert '"references": {\n    "mia": [' in record
    assert StoryResult.load(tmp_path / "out").story.characters["mia"] == Character(description="a girl")


def test_the_command_line_sends_references_and_prints_notes(server: ScriptedServer, pictures: Path) -> None:
    server.reference_notes = ["reference 1: 3 faces; the largest was taken"]
    create = ["characters", "create", "mia", "-r", str(pictures / "mia.png"), "-s", server.address]
    made = CliRunner().invoke(app, create)
    assert (made.exit_code, made.stdout) == (0, "character-1\n")
    assert "3 faces" in made.stderr
    refused = CliRunner().invoke(app, [*create, "-r", str(pictures / "notes.txt")])
    assert refused.exit_code == 2
    assert "not a PNG, JPEG or WebP picture" in refused.output
    shown = CliRunner().invoke(app, ["characters", "show", "character-1", "-s", server.address])
    assert "references: 1\n  reference 1: 3 faces" in shown.stdout
