"""A whole run on a tiny model package and an untrained reader: what it writes, and that it resumes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from benchmarks.quality import run
from benchmarks.quality.attributes import HEADS
from benchmarks.quality.generate import SETTINGS, PictureStore, Sampling, batches, fingerprint, make
from benchmarks.quality.network import AttributeNet, Reader
from benchmarks.quality.stories import bench_story
from storyloom_model.denoiser import Denoiser
from storyloom_model.package import ModelPackage, PackageError
from tests.model.tiny import build_tiny_package

STORIES, FRAMES = 3, 2


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return build_tiny_package(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("reader") / "reader.safetensors"
    Reader(AttributeNet()).save(file)
    return file


def score(package: Path, weights: Path, folder: Path, **changes: object) -> None:
    options = {
        "model": package, "stories": STORIES, "frames": FRAMES, "steps": 2, "seed": 0, "dtype": run.Dtype.float32,
        "rows": 8, "settings": "none,amsa,amsa-mask", "device": "cpu", "reader": weights, "cache": folder / "cache",
        "output": folder / "out", "name": "trial",
    }  # fmt: skip
    run.main(**(options | changes))  # type: ignore[arg-type]


def sampling(seed: int = 0) -> Sampling:
    return Sampling(steps=2, seed=seed, guidance_scale=3.0, solver="ddim", width=64, height=64)


@pytest.fixture(scope="module")
def results(package: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    score(package, weights, folder)
    return folder


def test_the_record_has_every_setting_and_story(results: Path) -> None:
    record = json.loads((results / "out" / "trial.json").read_text())
    assert list(record["figures"]) == ["renders", "none", "amsa", "amsa-mask"]
    assert list(record["differences"]) == ["amsa", "amsa-mask"]
    assert record["model"]["name"] == "tiny"
    assert len(record["stories"]) == STORIES
    for story in record["stories"]:
        for setting in record["figures"]:
            assert set(story["readings"][setting][0]) == set(HEADS)
            assert len(story["readings"][setting]) == FRAMES
    prompts = [story["scores"]["amsa"]["prompt"] for story in record["stories"]]
    assert record["figures"]["amsa"]["prompt"]["mean"] == pytest.approx(np.mean(prompts))


def test_the_page_and_the_contact_sheet_show_every_setting(results: Path) -> None:
    page = (results / "out" / "quality.md").read_text()
    for name in ("renders", *SETTINGS):
        assert f"| {name} |" in page
    sheet = Image.open(results / "out" / "trial.png")
    assert sheet.height > STORIES * 4 * 64
    assert sheet.width > FRAMES * 64


def test_the_last_line_has_the_three_figures(
    results: Path, package: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(package, weights, results)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    for part in ("amsa-mask: prompt ", "cross-frame ", "background "):
        assert part in last


def test_a_second_run_makes_nothing_anew(
    results: Path, package: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((results / "out" / "trial.json").read_text())
    monkeypatch.setattr(Denoiser, "step", lambda *_: pytest.fail("a kept story was made again"))
    score(package, weights, results)
    after = json.loads((results / "out" / "trial.json").read_text())
    assert after["figures"] == before["figures"]


def test_a_stopped_run_keeps_what_it_made(package: Path, tmp_path: Path) -> None:
    store = PictureStore(tmp_path, fingerprint(package), "float32")
    stories = [bench_story(index, FRAMES) for index in range(2)]
    jobs = [sampling().job(story, SETTINGS["amsa"]) for story in stories]
    pictures = next(make(Denoiser.load(package), jobs, rows=4))
    store.put(jobs[0], pictures)
    found = store.get(jobs[0])
    assert found is not None
    np.testing.assert_array_equal(found, pictures)
    assert store.get(jobs[1]) is None
    assert store.get(sampling(seed=1).job(stories[0], SETTINGS["amsa"])) is None
    assert PictureStore(tmp_path, fingerprint(package), "bfloat16").get(jobs[0]) is None


def test_settings_make_different_pictures_from_the_same_noise(package: Path) -> None:
    story, denoiser = bench_story(0, FRAMES), Denoiser.load(package)
    jobs = {name: sampling().job(story, setting) for name, setting in SETTINGS.items()}
    assert len({tuple(frame.seed for frame in job.frames) for job in jobs.values()}) == 1
    made = {name: next(make(denoiser, [job], rows=4)) for name, job in jobs.items()}
    assert made["none"].shape == (FRAMES, 64, 64, 3)
    assert (made["none"] != made["amsa"]).any()
    assert (made["amsa"] != made["amsa-mask"]).any()


def test_batches_keep_the_order_and_the_limit() -> None:
    jobs = [sampling().job(bench_story(index, 2), SETTINGS["none"]) for index in range(5)]
    assert [len(batch) for batch in batches(jobs, rows=9)] == [2, 2, 1]
    assert [job for batch in batches(jobs, rows=1) for job in batch] == jobs
    assert list(batches([], rows=4)) == []


def test_a_changed_package_has_another_fingerprint(package: Path) -> None:
    before = fingerprint(package)
    (package / "note.txt").write_text("x")
    assert fingerprint(package) != before
    (package / "note.txt").unlink()
    assert fingerprint(package) == before


def test_unknown_settings_and_missing_readers_are_refused(package: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose from none"):
        run.choose("none,amsi", ModelPackage.load(package))
    with pytest.raises(typer.Exit):
        score(package, weights, tmp_path, reader=tmp_path / "missing.safetensors")
    with pytest.raises(typer.Exit):
        score(package, weights, tmp_path, model=tmp_path)
    bare = ModelPackage(package, ModelPackage.load(package).manifest.model_copy(update={"adapters": {}}))
    with pytest.raises(PackageError, match="no adapter called amsa"):
        run.choose("amsa", bare)
