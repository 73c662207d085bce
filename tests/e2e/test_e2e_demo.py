"""What a newcomer runs first: `scripts/demo.py` with the built-in model, the real server and the real command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.mark.parametrize("story", ["a-day-in-the-park", "two-friends"])
def test_each_story_has_its_frames_its_sheet_and_its_record(demo: tuple[Path, str], story: str) -> None:
    folder = demo[0] / story
    record = json.loads((folder / "story.json").read_text())
    assert [frame["file"] for frame in record["frames"]] == [f"frame-{number:02d}.png" for number in range(1, 7)]
    seeds = {frame["seed"] for frame in record["frames"]}
    assert len(seeds) == 6
    pictures = [np.asarray(Image.open(folder / frame["file"]).convert("RGB")) for frame in record["frames"]]
    assert all(picture.shape == (128, 128, 3) for picture in pictures)
    # A picture of something: not flat, and no two alike.
    assert all(picture.std() > 20 for picture in pictures)
    assert all(np.abs(a - b.astype(int)).mean() > 5 for i, a in enumerate(pictures) for b in pictures[:i])
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.width > 3 * 128
        assert sheet.height > 2 * 128


def test_it_says_where_the_pictures_are_and_that_the_server_stopped(demo: tuple[Path, str]) -> None:
    out, said = demo
    assert str(out) in said
    assert "stopped cleanly (exit code 0)" in said


def test_pictures_say_that_they_are_generated(demo: tuple[Path, str]) -> None:
    with Image.open(demo[0] / "two-friends" / "frame-01.png") as picture:
        texts = " ".join(f"{key} {value}" for key, value in picture.info.items())
    assert "AI-generated" in texts
