"""How captured calls are kept, without a GPU: capturing is pretended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from storyloom_model.denoiser import Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.graphs import Call, GraphCache
from tests.model.tiny import finish, tiny_job


class PretendedCapture:
    """Replays by calling, on static inputs as a graph does, and writes down what it was asked to capture."""

    def __init__(self, refuse_rows: int | None = None) -> None:
        self.captured: list[int] = []
        self.replays = 0
        self._refuse_rows = refuse_rows

    def __call__(self, call: Call, inputs: Mapping[str, Tensor]) -> Call:
        rows = next(iter(inputs.values())).shape[0]
        if rows == self._refuse_rows:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured.append(rows)
        static = {name: value.clone() for name, value in inputs.items()}

        def replay(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            self.replays += 1
            for name, value in given.items():
                static[name].copy_(value)
            return {name: value.clone() for name, value in call(static).items()}

        return replay


def double(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"out": inputs["x"] * 2}


def of_rows(rows: int, value: float = 1.0) -> dict[str, Tensor]:
    return {"x": torch.full((rows, 2), value)}


def test_a_graph_is_captured_once_and_serves_other_values() -> None:
    capture = PretendedCapture()
    graphs = GraphCache(4, capture)
    for value in (1.0, 3.0, -2.0):
        assert torch.equal(graphs.run("unet", double, of_rows(2, value))["out"], torch.full((2, 2), 2 * value))
    assert capture.captured == [2]
    assert capture.replays == 3
    assert (graphs.captured, graphs.refused, len(graphs)) == (1, 0, 1)


def test_other_shapes_dtypes_inputs_and_names_are_other_graphs() -> None:
    graphs = GraphCache(8, PretendedCapture())
    graphs.run("unet", double, of_rows(2))
    graphs.run("unet", double, of_rows(4))
    graphs.run("unet", double, {"x": of_rows(2)["x"].double()})
    graphs.run("unet", double, of_rows(2) | {"y": torch.zeros(1)})
    graphs.run("other", double, of_rows(2))
    assert len(graphs) == graphs.captured == 5


def test_the_one_unused_for_longest_goes_first() -> None:
    capture = PretendedCapture()
    graphs = GraphCache(2, capture)
    for rows in (1, 2, 1, 3, 1, 2):
        graphs.run("unet", double, of_rows(rows))
        assert len(graphs) <= 2
    assert capture.captured == [1, 2, 3, 2]
    graphs.clear()
    assert len(graphs) == 0
    graphs.run("unet", double, of_rows(1))
    assert capture.captured[-1] == 1


def test_what_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    capture = PretendedCapture(refuse_rows=2)
    graphs = GraphCache(4, capture)
    with caplog.at_level(logging.WARNING, "storyloom.model"):
        for rows in (2, 2, 3, 2):
            assert torch.equal(graphs.run("unet", double, of_rows(rows))["out"], torch.full((rows, 2), 2.0))
    assert (graphs.captured, graphs.refused, len(graphs)) == (1, 1, 1)
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.records[0].getMessage()


def test_stories_through_replays_are_those_without(tiny_package: Path) -> None:
    """Static inputs are refilled at every step, whichever stories and steps are in the bucket."""
    options = ExecutionOptions(buckets=(16,))
    plain, graphed = (Denoiser.load(tiny_package, options=options, one_call=True) for _ in range(2))
    capture = PretendedCapture()
    graphed._runner.graphs = GraphCache(4, capture)
    jobs = [tiny_job(3, seed=1, steps=3), tiny_job(2, seed=2, steps=5, guidance_scale=1.0, solver="euler")]
    made = []
    for denoiser in (plain, graphed):
        states = [denoiser.encode(job) for job in jobs]
        while open_states := [state for state in states if not state.done]:
            denoiser.step(open_states)
        made.append(states)
    for expected, found in zip(*made, strict=True):
        assert torch.equal(found.latents, expected.latents)
    assert capture.captured == [16]
    assert capture.replays == 5
    finish(graphed, tiny_job(1, cross_frame=False))
    assert capture.captured == [16, 16]  # Without attention across frames it is another call.
