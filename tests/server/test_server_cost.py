"""Learned costs: they converge to what is measured, whatever comes in between, and are never negative."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyloom_server.engine.process import cost_model
from storyloom_server.scheduler import CostModel, Load, StoryShape, padded_rows
from tests.server.engines import engine_options

shapes = st.builds(
    StoryShape,
    frames=st.integers(1, 12),
    branches=st.sampled_from([1, 2]),
    pixels=st.sampled_from([256 * 256, 512 * 512, 1024 * 1024]),
    steps=st.integers(1, 50),
    anchors=st.integers(0, 4),
)


def load_of(batch: Sequence[StoryShape]) -> Load:
    return sum((shape.load for shape in batch), Load())


def random_batches(seed: int, count: int, pixels: int = 512 * 512) -> list[Load]:
    draw = random.Random(seed)  # noqa: S311
    return [
        load_of([StoryShape(draw.randint(1, 8), 2, pixels, 20) for _ in range(draw.randint(1, 4))])
        for _ in range(count)
    ]


def seconds(load: Load, base: float, row: float, cross: float) -> float:
    return base + row * load.row_megapixels + cross * load.cross


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.2), st.floats(0.001, 0.5), st.floats(0, 0.05), st.integers(0, 1000))
def test_it_finds_the_device_behind_the_measurements(base: float, row: float, cross: float, seed: int) -> None:
    model = CostModel()
    for load in random_batches(seed, 80):
        model.observe_step(load, seconds(load, base, row, cross))
    assert model.calibrated
    for load in random_batches(seed + 1, 20):
        assert model.coefficients.step_seconds(load) == pytest.approx(seconds(load, base, row, cross), rel=0.05)


def test_slow_outliers_hardly_count() -> None:
    """First calls and collections take many times as long: a tenth of them may not move the estimate by a tenth."""
    model, draw = CostModel(), random.Random(3)  # noqa: S311
    for index, load in enumerate(random_batches(1, 200)):
        usual = seconds(load, 0.02, 0.05, 0.002) * draw.uniform(0.95, 1.05)
        model.observe_step(load, usual * (30 if index % 10 == 0 else 1))
    for load in random_batches(2, 20):
        assert model.coefficients.step_seconds(load) == pytest.approx(seconds(load, 0.02, 0.05, 0.002), rel=0.1)


def test_a_device_that_has_become_slower_is_followed() -> None:
    model = CostModel()
    for load in random_batches(1, 200):
        model.observe_step(load, seconds(load, 0.02, 0.05, 0.002))
    for load in random_batches(2, 600):
        model.observe_step(load, 3 * seconds(load, 0.02, 0.05, 0.002))
    for load in random_batches(3, 20):
        assert model.coefficients.step_seconds(load) == pytest.approx(3 * seconds(load, 0.02, 0.05, 0.002), rel=0.1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(shapes, st.floats(1e-6, 1e4)), min_size=1, max_size=40))
def test_nonsense_gives_no_negative_costs(measured: list[tuple[StoryShape, float]]) -> None:
    model = CostModel()
    for shape, value in measured:
        model.observe_step(shape.load, value)
        model.observe_encode(shape, value)
        model.observe_decode(shape, 1, value)
    found = model.coefficients
    assert min(found.base, found.per_row_megapixel, found.per_cross, *found.encode, *found.decode) >= 0
    assert found.story_seconds(measured[0][0]) > 0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_broken_measurement_is_ignored(value: float) -> None:
    model = CostModel()
    before = model.coefficients
    model.observe_step(StoryShape(1, 1, 64, 1).load, value)
    assert model.coefficients == before
    assert not model.calibrated


def test_one_shape_alone_is_predicted_exactly_and_others_sensibly() -> None:
    """After a warm-up with one story only, other batches follow the prior's proportions."""
    model = CostModel()
    small, large = StoryShape(2, 2, 512 * 512, 20).load, StoryShape(8, 2, 512 * 512, 20).load
    for _ in range(10):
        model.observe_step(small, 0.3)
    assert model.coefficients.step_seconds(small) == pytest.approx(0.3, rel=0.01)
    assert 0.3 < model.coefficients.step_seconds(large) < 8 * 0.3


@given(st.lists(shapes, max_size=8), shapes)
def test_loads_add_up_and_take_away_exactly(batch: list[StoryShape], other: StoryShape) -> None:
    total = Load.total(shape.load for shape in batch)
    assert total == load_of(batch)
    assert total + other.load - other.load == total


def test_padding_costs_as_much_as_rows() -> None:
    buckets = (1, 2, 4, 8, 16)
    model = CostModel(buckets)
    for frames in (1, 2, 3, 4, 5, 6, 8, 9, 12, 16):
        model.observe_step(StoryShape(frames, 1, 512 * 512, 1).load, 0.01 + 0.02 * padded_rows(frames, buckets))
    five, eight, seventeen, twenty = (
        model.coefficients.step_seconds(StoryShape(n, 1, 512 * 512, 1).load) for n in (5, 8, 17, 20)
    )
    assert five == pytest.approx(eight, rel=0.1)
    assert seventeen < 0.9 * twenty, "rows above the largest bucket are not padded"


def test_a_story_costs_its_encoding_its_steps_and_its_frames() -> None:
    model = CostModel()
    shape = StoryShape(4, 2, 512 * 512, 20)
    for _ in range(10):
        model.observe_step(shape.load, 0.1)
        model.observe_encode(shape, 0.5)
        model.observe_decode(shape, 1, 0.05)
    assert model.coefficients.story_seconds(shape) == pytest.approx(0.5 + 20 * 0.1 + 4 * 0.05, rel=0.02)
    assert model.coefficients.story_seconds(shape, 15, 2) == pytest.approx(5 * 0.1 + 2 * 0.05, rel=0.02)


@given(st.integers(1, 100), st.sets(st.integers(1, 80)))
def test_rows_are_padded_to_the_next_bucket_if_there_is_one(rows: int, buckets: set[int]) -> None:
    padded = padded_rows(rows, sorted(buckets))
    assert padded == min((bucket for bucket in buckets if bucket >= rows), default=rows)


def test_on_a_gpu_the_cost_model_pads_as_the_models_do() -> None:
    options = engine_options()
    assert cost_model(options).coefficients.buckets == ()
    on_gpu = cost_model(replace(options, device="cuda:0")).coefficients
    for rows in range(1, 100):
        assert padded_rows(rows, on_gpu.buckets) == (options.execution.bucket(rows) or rows)
