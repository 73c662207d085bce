"""The kernel benchmarks run from end to end on tiny shapes, and what they measured is held against the aims."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels.figures import FIGURES
from benchmarks.kernels.records import Case, Record
from benchmarks.kernels.report import aims_table, write_report

ROOT = Path(__file__).parents[2]


def implementation(name: str, milliseconds: float, extra: int = 0) -> dict[str, Any]:
    return {"name": name, "milliseconds": milliseconds, "samples": [milliseconds], "extra_bytes": extra}


def result() -> dict[str, Any]:
    """As from a GPU: K1 at two shapes, forward and with its gradients, of which xFormers could not run."""
    records = [
        {
            "op": "K1", "shape": f"SDXL 1024 N=4096 d=64 F={frames}", "pass": mode, "width": 64, "frames": frames,
            "flops": scale * 4e11 * frames, "results": [
                implementation("triton", scale * frames, 3 * frames), implementation("sdpa", scale * 5 * frames, 1600),
                implementation("flex", scale * 2.5 * frames, 500), {"name": "xformers", "error": "not installed"},
                implementation("triton alone", scale * frames), implementation("varlen alone", scale * 0.9 * frames),
            ],
        }
        for frames in (8, 16) for mode, scale in (("forward", 1), ("forward+backward", 3.5))
    ]  # fmt: skip
    return {
        "command": "python -m benchmarks.kernels.run", "hardware": "a GPU", "versions": {"torch": "2.11"},
        "copy_bytes_per_second": 4e12, "records": records, "left_out": ["K1 SD 1.5 forward"],
    }  # fmt: skip


def test_each_aim_stands_beside_its_figure() -> None:
    made = result()
    lines = aims_table(made["records"], made["copy_bytes_per_second"])
    shape = "SDXL 1024 N=4096 d=64 F=16 | forward"
    assert f"| K1 | useful work, attention alone | {shape} | 400 TFLOP/s | at least 380 TFLOP/s | yes |" in lines
    best = "map to output, against the best of SDPA, Flex and xFormers"
    assert f"| K1 | {best} | {shape} | 2.50x | at least 2x | yes |" in lines
    assert f"| K1 | attention alone, against Flash varlen | {shape} | 0.90x | at least 1x | no |" in lines
    memory = [line for line in lines if "peak extra memory" in line]
    assert len(memory) == 2  # an aim for 16 frames alone
    assert f"| {shape} | 3.00 % | at most 5 % | yes |" in memory[0]


def test_an_aim_whose_rival_or_kernel_did_not_run_is_not_measured() -> None:
    made = result()
    for record in made["records"]:
        record["results"] = [one for one in record["results"] if one["name"] != "varlen alone"]
    lines = [line for line in aims_table(made["records"], 4e12) if "Flash varlen" in line]
    assert len(lines) == 4
    assert all("| not measured | at least 1x | - |" in line for line in lines)


def test_a_shape_that_cannot_be_set_up_does_not_cost_the_others() -> None:
    def out_of_memory() -> Record:
        raise RuntimeError("out of memory")

    record = Case("K1", "too large", "forward", {"width": 64, "frames": 16}, out_of_memory).record()
    lines = aims_table([record, *result()["records"]], 4e12)
    assert sum("too large" in line and "not measured" in line for line in lines) == 4
    assert sum(" yes " in line for line in lines) > 4


def test_the_report_says_what_could_not_run_and_what_was_left_out(tmp_path: Path) -> None:
    printed = write_report(result(), tmp_path)
    assert "- K1 xformers: not installed" in printed
    assert "- K1 SD 1.5 forward" in printed
    written = (tmp_path / "kernels.md").read_text()
    assert written.startswith(printed)
    assert "| SDXL 1024 N=4096 d=64 F=8 | forward | 8.000 | 40.000 | 20.000 | - | 8.000 | 7.200 |" in written


def test_a_plot_shows_each_figure_beside_its_aim_and_nothing_covers_a_number(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from benchmarks.kernels.plots import draw, picture

    (file,) = draw(result(), tmp_path)
    assert file.name == "kernels-k1.png"
    with Image.open(file) as image:
        assert min(image.size) > 300
    made = picture(result(), "K1")
    made.draw_without_rendering()
    targets = [figure.target for figure in FIGURES if figure.op == "K1"]
    for panel, target in zip(made.axes, targets, strict=True):
        (line,) = panel.collections
        assert {x for segment in line.get_segments() for x, _ in segment} == {target}
        # Two shapes, two passes; the aim of the memory speaks of one of the shapes.
        assert len(panel.patches) == 4
        assert len(line.get_segments()) == (1 if target == 5 else 2)
        boxes = [text.get_window_extent() for text in panel.texts]
        assert len(boxes) == 4
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    rows = [bar.get_width() for bar in made.axes[0].patches]
    assert rows == pytest.approx([400, 400, 400, 400])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu runs the real ones")
def test_it_reports_what_it_measured(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "benchmarks.kernels.run", "--smoke", "--repeats", "1", "--out", str(tmp_path)]
    paths = ":".join(str(ROOT / part) for part in ("kernels", "model", ""))
    done = subprocess.run(
        command, cwd=ROOT, env={"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "kernels.json").read_text())
    assert {record["op"] for record in measured["records"]} == {"K1", "K2", "K4", "UNet"}
    for record in measured["records"]:
        for entry in record["results"]:
            assert entry.get("milliseconds") or entry["error"], entry
            own = entry["name"].startswith("triton") or record["op"] == "UNet"
            assert not own or entry["milliseconds"] > 0, entry
    assert "| K2 | of its memory floor |" in done.stdout
    assert "| UNet |" in done.stdout
    assert {file.name for file in tmp_path.glob("*.png")} == {f"kernels-{op}.png" for op in ("k1", "k2", "k4", "unet")}
