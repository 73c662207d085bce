"""What is written to a folder, and that it can be read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from storyloom import Story, StoryClient, StoryFileError, StoryResult, __version__
from storyloom._result import frame_names
from tests.clients.scripted import ScriptedServer


@pytest.fixture
def result(server: ScriptedServer, story: Story) -> StoryResult:
    with StoryClient(server.address) as client:
        return client.generate(story)


def test_a_saved_result_comes_back_the_same(result: StoryResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "deep" / "down")
    assert StoryResult.load(folder) == result


def test_the_folder_holds_pictures_sheet_and_record(result: StoryResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "contact-sheet.png",
        "frame-01.png",
        "frame-02.png",
        "frame-03.png",
        "story.json",
    ]
    assert (tmp_path / "frame-02.png").read_bytes() == result.pictures[1].png
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.size == result.contact_sheet().size
    record = json.loads((tmp_path / "story.json").read_text(encoding="utf-8"))
    assert record["storyloom"] == {"client": __version__, "contract": "storyloom.v1"}
    assert record["model"] == "mini"
    assert record["settings"]["seed"] == 9
    assert record["frames"][1] == {
        "file": "frame-02.png",
        "caption": "waving",
        "prompt": "full: waving",
        "seed": 7,
        "width": 32,
        "height": 32,
    }
    assert record["consistency"] == {"mia": 0.875, "tom": 0.875}
    assert Story.model_validate(record["story"]) == result.story


def test_a_record_of_an_older_client_is_read(result: StoryResult, tmp_path: Path) -> None:
    path = result.save(tmp_path) / "story.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["consistency"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert StoryResult.load(tmp_path) == replace(result, consistency={})


def test_saving_again_leaves_no_frame_of_a_longer_story(result: StoryResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    shorter = replace(
        result,
        story=result.story.model_copy(update={"frames": result.story.frames[:1]}),
        pictures=result.pictures[:1],
        seeds=result.seeds[:1],
        prompts=result.prompts[:1],
    )
    shorter.save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["contact-sheet.png", "frame-01.png", "notes.txt", "story.json"]
    assert StoryResult.load(tmp_path) == shorter


def test_pictures_of_someone_else_are_left_alone(result: StoryResult, tmp_path: Path) -> None:
    (tmp_path / "frame-99.png").write_bytes(b"not ours")
    result.save(tmp_path)
    assert (tmp_path / "frame-99.png").read_bytes() == b"not ours"


def test_an_incomplete_folder_is_told(result: StoryResult, tmp_path: Path) -> None:
    with pytest.raises(StoryFileError, match="holds no complete result"):
        StoryResult.load(tmp_path)
    result.save(tmp_path)
    (tmp_path / "frame-02.png").unlink()
    with pytest.raises(StoryFileError, match="generate the story again"):
        StoryResult.load(tmp_path)


def test_frame_names_sort_as_they_count() -> None:
    assert frame_names(2) == ["frame-01.png", "frame-02.png"]
    many = frame_names(120)
    assert many == sorted(many)
    assert many[0] == "frame-001.png"
