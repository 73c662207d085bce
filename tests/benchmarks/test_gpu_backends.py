"""The comparison of backends on a GPU, in tiny form on the CPU: it runs, and says what is not to be had."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.export import backends, gpu
from tests.model.tiny import build_tiny_package


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the real comparison is run")
def test_every_variant_has_figures_or_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in gpu.VARIANTS if "compile" not in name]  # Compiling takes minutes on a CPU.
    out = tmp_path / "backends.json"
    model = str(build_tiny_package(tmp_path / "tiny"))
    gpu.main(["--model", model, "--steps", "2", "--repeats", "1", "--out", str(out), "--variants", *names])
    result = json.loads(out.read_text())
    assert list(result["variants"]) == names
    for name in ("torch eager", "onnxruntime"):
        assert len(result["variants"][name]["step_seconds_all"]) == 2
        assert min(result["variants"][name]["psnr"]) > 40
    reasons = {name: found["not_available"] for name, found in result["variants"].items() if "not_available" in found}
    assert "need a CUDA device" in reasons["torch with CUDA graphs"]
    assert "use --device cuda:0" in reasons["onnxruntime-tensorrt"]
    assert "TensorRT" in reasons["tensorrt"]
    assert set(names) == {"torch eager", "onnxruntime", *reasons}
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "not available: " in printed


def test_the_verdict_names_the_fastest() -> None:
    assert backends.verdict({"torch": 3.0, "onnxruntime": 2.0}) == (
        "better default here: onnxruntime, 1.50 times as fast as torch"
    )
