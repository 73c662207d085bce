"""The kernel benchmarks run from end to end on tiny shapes and report every implementation that they tried."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu runs the real ones")


def run_smoke(module: str, folder: Path) -> str:
    command = [sys.executable, "-m", module, "--smoke", "--repeats", "1", "--out", str(folder)]
    paths = ":".join(str(ROOT / part) for part in ("kernels", "model", ""))
    done = subprocess.run(
        command, cwd=ROOT, env={"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_whole_unet_step_is_compared(tmp_path: Path) -> None:
    printed = run_smoke("benchmarks.kernels.unet", tmp_path)
    ratio = json.loads((tmp_path / "unet.json").read_text())["ratio"]
    assert f"{ratio:.2f} times" in printed.splitlines()[-1]


def test_it_reports_what_it_measured(tmp_path: Path) -> None:
    run_smoke("benchmarks.kernels.run", tmp_path)
    result = json.loads((tmp_path / "kernels.json").read_text())
    assert {record["op"] for record in result["records"]} == {"K1", "K2", "K4"}
    for record in result["records"]:
        by_name = {entry["name"]: entry for entry in record["results"]}
        assert by_name["triton"]["milliseconds"] > 0, by_name["triton"]
        assert all("milliseconds" in entry or entry["error"] for entry in record["results"])
    table = (tmp_path / "kernels.md").read_text()
    assert "TFLOP/s" in table
    assert "What could not run" in table
