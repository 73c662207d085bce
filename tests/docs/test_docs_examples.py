"""The Python scripts in examples/ run against a real server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.serving import ROOT, serving

MODEL = ROOT / "weights" / "storyloom-mini"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Slow enough that a reader can break off in the middle.
    environment = {"STORYLOOM_TEST_STEP_SECONDS": "0.05"}
    with serving(tmp_path_factory.mktemp("server"), MODEL, environment=environment) as server:
        yield server.address


def run(script: str, address: str, out: Path) -> str:
    command = [sys.executable, f"examples/{script}", "--server", address, "--steps", "9", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_story_is_taken_up_again(address: str, tmp_path: Path) -> None:
    told = run("resume.py", address, tmp_path)
    before, _, after = told.partition("broke off")
    assert "step 2 of 9" in before
    assert "frame 1 is done" not in before
    assert "step 2 of 9" not in after
    assert "frame 1 is done" in after
    assert len(list(tmp_path.glob("frame-*.png"))) == 2


def test_a_story_is_extended_and_a_frame_made_again(address: str, tmp_path: Path) -> None:
    assert "3 frames, 2 of them taken over" in run("extend.py", address, tmp_path)
    first, longer, redone = ({file.name: file.read_bytes() for file in (tmp_path / name).glob("frame-*.png")}
                             for name in ("first", "longer", "redone"))  # fmt: skip
    assert longer.keys() - first.keys() == {"frame-03.png"}
    assert all(longer[name] == picture for name, picture in first.items())
    assert {name for name in longer if redone[name] != longer[name]} == {"frame-02.png"}
