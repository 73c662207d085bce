"""Every kernel compiles for every architecture within its budgets; what is over one is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storyloom_kernels.aot import ARCHITECTURES, Resources

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
FINE = Resources("k", 89, registers=100, stack=0, shared=90 * 1024, tensor_core=4, plain_dots=0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_every_kernel_compiles_within_its_budgets() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "storyloom_kernels.aot"], cwd=ROOT / "kernels", env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].endswith("0 not as they should be")
    for architecture in ARCHITECTURES:
        for kernel in ("cross_frame.forward", "identity.", "foreground.", "group_norm."):
            assert any(line.startswith(kernel) and f" {architecture} " in line for line in lines), kernel


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stack": 8}, "it spills"),
        ({"shared": 100 * 1024}, "there are 99 KiB"),
        ({"plain_dots": 2}, "2 dots without tensor cores"),
        ({"registers": 121}, "the budget is 120"),
    ],
)
def test_each_fault_is_told(changes: dict[str, int], says: str) -> None:
    found = list(Resources(**{**FINE.__dict__, **changes}).complaints(120))
    assert len(found) == 1
    assert says in found[0]


def test_a_kernel_within_its_budget_is_fine_and_one_without_is_not() -> None:
    assert not list(FINE.complaints(120))
    assert "no recorded budget" in next(FINE.complaints(None))
