"""A whole run against a real server of a tiny model: what it makes, what it writes, and that it goes on."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from benchmarks.stories import run
from benchmarks.stories.consistory import read_benchmark
from benchmarks.stories.generate import Maker, Shelf
from benchmarks.stories.known import known_by_name
from benchmarks.stories.methods import METHODS, evaluations, method
from benchmarks.stories.run import Service, main, service
from storyloom import Settings, StoryClient, StoryResult
from tests.model.tiny import build_tiny_package

FILE = """{{"prompts": ["a girl with red hair walks in the {0}", "a girl with red hair on the coat"],
"character": "girl with red hair", "token": "girl", "style": "a"}}"""
MAKE = {"methods": "none,amsa", "steps": 2, "stories": None, "prompts": None}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that a run has started for itself."""
    with service(None, build_tiny_package(tmp_path_factory.mktemp("tiny"))) as started:
        yield started


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    for name in ("red", "blue"):
        (folder / f"{name}.json").write_text(FILE.format(name))
    # More than the tiny model's text encoder reads: the server refuses it.
    (folder / "wordy.json").write_text(FILE.format("hair " * 200))
    return folder


def make(at: Service, asked: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A run against the server that is there already; its record."""
    options: dict[str, Any] = {
        "benchmark": str(asked), "server": at.address, "model": Path("nowhere"), "out": out, "people": 1,
        "described": True, "references": None, "guidance": None, "seed": 0, "weights": None, "clip": None,
        "dino": None, "faces": None, "built_in": None, "device": "cpu",
        "candidates": 4, "texts": True,
    }  # fmt: skip
    main(**(options | MAKE | changes))
    return dict(json.loads((out / "results.json").read_text()))


@pytest.fixture(scope="module")
def out(at: Service, benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    make(at, benchmark, folder)
    return folder


def test_every_method_has_every_story_with_its_pictures_and_its_cost(out: Path) -> None:
    record = json.loads((out / "results.json").read_text())
    assert list(record["stories"]) == ["none", "amsa"]
    for name, stories in record["stories"].items():
        blue, red, wordy = stories
        assert (blue["name"], red["name"], wordy["name"]) == ("blue", "red", "wordy")
        assert blue["prompts"] == ["a girl with red hair walks in the blue", "a girl with red hair on the coat"]
        assert len(blue["values"]["background"]) == 2
        assert blue["cost"]["evaluations"] == 4
        assert wordy["refused"]
        assert wordy["values"] == {}
        result = StoryResult.load(out / name / "red")
        assert result.settings.steps == 2
        assert result.settings.consistency.enabled is (name == "amsa")
    seeds = {StoryResult.load(out / name / "red").seeds for name in record["stories"]}
    assert len(seeds) == 1
    assert seeds != {StoryResult.load(out / "none" / "blue").seeds}
    assert record["figures"]["1"]["amsa"]["background"]["stories"] == 2
    assert record["differences"]["1"]["amsa"].keys() >= {"background", "seconds"}
    assert record["machine"]["torch"]


def test_the_page_has_a_row_a_method_and_says_what_is_not_there(out: Path) -> None:
    page = (out / "results.md").read_text()
    assert "\n| none | " in page
    assert "\n| amsa | " in page
    assert "left out: CLIP-T, CLIP-T-C, CLIP-I; give --clip" in page
    assert "refused: none, wordy: " in page
    assert (out / "index.html").read_text().count("<img ") == 8
    with Image.open(out / "sheet-1.png") as sheet:
        assert sheet.width < sheet.height * 2
        assert len(sheet.convert("RGB").getcolors(1 << 20) or ()) > 100


def test_results_for_others_may_be_without_the_benchmarks_texts(
    at: Service, benchmark: Path, out: Path, tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    record = make(at, benchmark, tmp_path, texts=False)
    assert "walks" in (out / "results.json").read_text()
    assert "walks" not in (tmp_path / "results.json").read_text() + (tmp_path / "results.md").read_text()
    assert record["figures"]["1"]["none"]["background"]["stories"] == 2


def test_the_same_command_makes_nothing_twice(
    at: Service, benchmark: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*/*")}
    assert before
    make(at, benchmark, out)
    assert "0 stories made" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/*/*")} == before


def test_what_a_killed_run_left_half_done_is_made_again(
    at: Service, benchmark: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    (tmp_path / "amsa" / "red" / "benchmark.json").unlink()
    os.truncate(tmp_path / "none" / "blue" / "story.json", 10)
    make(at, benchmark, tmp_path)
    assert "2 stories made" in capsys.readouterr().out
    assert StoryResult.load(tmp_path / "amsa" / "red") == StoryResult.load(out / "amsa" / "red")


def test_what_was_made_with_other_settings_is_made_again(
    at: Service, benchmark: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    make(at, benchmark, tmp_path, methods="none", stories=2, prompts=1, seed=1)
    assert "2 stories made" in capsys.readouterr().out
    assert [file.name for file in sorted((tmp_path / "none" / "red").glob("frame-*"))] == ["frame-01.png"]


def test_a_server_of_its_own_is_asked_what_the_unet_did(at: Service, benchmark: Path, tmp_path: Path) -> None:
    story = read_benchmark(benchmark / "red.json")[0]
    maker = Maker(at.client, Shelf(tmp_path, at.known_by), {"steps": 3}, metrics=at.metrics)
    cost = maker.make("none", METHODS["none"], story, lambda: None).cost
    assert cost is not None
    assert (cost.counted_by, cost.evaluations) == ("server", 6)
    assert cost.processor is not None
    assert 0 < cost.processor < 100
    assert at.known_by(Settings()) != "tiny"


def test_a_story_that_a_run_left_behind_is_joined(at: Service, benchmark: Path, tmp_path: Path) -> None:
    story = read_benchmark(benchmark / "red.json")[0]
    made = [
        Maker(at.client, Shelf(tmp_path / name, known_by_name("tiny")), {"steps": 2}, seed=9).make(
            "none", METHODS["none"], story, lambda: None
        )
        for name in ("first", "again")
    ]
    first, again = (StoryResult.load(outcome.folder) for outcome in made if outcome.folder is not None)
    assert first.story_id == again.story_id


def test_wrong_wishes_are_told_of_before_anything_is_made(
    at: Service, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, told in (
        ({"methods": "nonsense"}, "choose from default, none"),
        ({"benchmark": str(tmp_path / "none.json")}, "cannot be read"),
        ({"clip": tmp_path}, "neither config.json nor open_clip_config.json"),
        ({"references": tmp_path}, "no reference of any character"),
        ({"server": None, "model": tmp_path}, "storyloom.yaml"),
    ):
        with pytest.raises(typer.Exit):
            make(at, benchmark, tmp_path / "out", **changes)
        assert told in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_methods_by_the_names_of_adapters() -> None:
    assert method("adapter:mine").settings["consistency"] == {"enabled": True, "adapter": "mine"}
    assert method("identity:ip").settings == {"identity_adapter": "ip"}
    assert method("identity:ip").references
    assert not method("amsa").references


def test_a_method_with_changed_settings() -> None:
    changed = method("identitystory@redenoising.start=0.4+steps=12")
    assert changed.settings["redenoising"] == {"enabled": True, "start": 0.4}
    assert changed.settings["steps"] == 12
    assert changed.references
    assert "start" not in method("identitystory").settings["redenoising"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("amsa@steps", "SETTING=VALUE"),
        ("amsa@speed=3", "speed"),
        ("amsa@steps=-3", "steps"),
        ("identitystory@redenoising.start=2", "redenoising.start"),
        ("nobody@steps=3", "no method 'nobody'"),
    ],
)
def test_changes_that_mean_nothing_are_told_of(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        method(name)


def test_evaluations_are_steps_times_branches() -> None:
    assert evaluations(Settings(steps=30, guidance_scale=7.0)) == 60
    assert evaluations(Settings(steps=30, guidance_scale=1.0)) == 30


def test_a_client_of_a_server_knows_its_model_by_name(at: Service) -> None:
    with service(at.address, Path("nowhere")) as other:
        assert isinstance(other.client, StoryClient)
        assert (other.known_by(Settings()), other.metrics) == ("tiny", None)
    assert run.BUILT_IN.is_dir()
