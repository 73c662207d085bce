"""The search for tiles, and that what it finds is what the launchers then look up. Times are made up: no GPU needed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storyloom_kernels import tuning
from storyloom_kernels.implementations import triton_obstacle
from storyloom_kernels.tuning import Tiles
from tests.kernels.launchers import DEVICE

pytest.importorskip("triton")

from storyloom_kernels import tune

START = Tiles(64, 32, 4, 2)


def made_up(seed: int) -> Callable[[Tiles], float]:
    """Milliseconds of tiles, the same for the same ones; one in five cannot run."""

    def milliseconds(tiles: Tiles) -> float:
        number = hash((seed, tiles)) % 1000
        return math.inf if number < 200 and tiles != START else float(number)

    return milliseconds


@given(st.integers(0, 2**32 - 1))
def test_no_neighbour_of_the_fastest_is_faster_and_none_is_timed_twice(seed: int) -> None:
    milliseconds, timed = made_up(seed), list[Tiles]()

    def watched(tiles: Tiles) -> float:
        timed.append(tiles)
        return milliseconds(tiles)

    found, time = tune.fastest(START, watched)
    assert time == milliseconds(found) <= milliseconds(START)
    assert all(milliseconds(beside) >= time for beside in tune.neighbours(found))
    assert len(timed) == len(set(timed))


def test_a_start_that_cannot_run_is_left_for_a_neighbour_that_can() -> None:
    found, time = tune.fastest(START, lambda tiles: 3.0 if tiles.warps == 8 else math.inf)
    assert (found.warps, time) == (8, 3.0)
    with pytest.raises(ValueError, match="can run on this device"):
        tune.fastest(START, lambda _: math.inf)


@given(st.builds(Tiles, *[st.sampled_from([16, 32, 64, 128])] * 2, st.sampled_from([4, 8]), st.integers(1, 4)))
def test_neighbours_differ_in_one_number_and_fit_the_kernels(tiles: Tiles) -> None:
    for beside in tune.neighbours(tiles):
        assert sum(one != other for one, other in zip(vars(tiles).values(), vars(beside).values(), strict=True)) == 1
        assert 16 <= beside.queries <= 128
        assert 16 <= beside.keys <= 128
        assert beside.stages >= 1


@pytest.mark.skipif(
    triton_obstacle(torch.zeros(1, device=DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)
def test_what_it_finds_for_each_kernel_is_what_is_then_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []

    def timer(call: Any) -> float:
        chosen = call.args[-1]
        if chosen.stages == 3:
            raise RuntimeError("out of shared memory")
        if (chosen.queries, chosen.keys, chosen.stages) == (16, 16, 1):  # the interpreter is slow: not all of them
            call()
            launched.append(chosen)
        return float(chosen.queries + chosen.keys + chosen.stages)

    layer = tune.Layer(width=16, positions=20, heads=1, rows=2)
    found = {key: tiles for key, tiles, _ in tune.tune(layer, DEVICE, timer)}
    assert len(launched) >= len(found)
    file = tmp_path / "tuning.json"
    shutil.copy(tune.TABLE, file)
    tune.write_entries(file, found, "a test")
    monkeypatch.setattr(tuning, "table", lambda: json.loads(file.read_text())["tiles"])
    parts = ("forward", "query_gradient", "key_gradient")
    for kernel in (f"{op}_{part}" for op in ("cross_frame", "identity") for part in parts):
        # Not the cached face of it, which may hold what the real table says.
        looked_up = tuning.tiles.__wrapped__(kernel, tuning.architecture(DEVICE), layer.width, layer.positions)
        assert (looked_up.queries, looked_up.keys, looked_up.stages) == (16, 16, 1)


def test_the_table_keeps_its_other_entries_and_its_form(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    shutil.copy(tune.TABLE, file)
    before = json.loads(file.read_text())
    tune.write_entries(file, {}, before["made_by"])
    assert file.read_text() == tune.TABLE.read_text()
    tune.write_entries(file, {"identity_forward/90/64/large": START}, "somebody")
    after = json.loads(file.read_text())
    assert after["made_by"] == "somebody"
    assert after["tiles"] == before["tiles"] | {"identity_forward/90/64/large": [64, 32, 4, 2]}
