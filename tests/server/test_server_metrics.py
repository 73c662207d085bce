"""Metrics: names by Prometheus' rules, bounded labels, and an exposition that its own parser reads."""

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from storyloom_server.metrics import Metrics

MODELS = ("mini", "large")
LABELS = {"method", "code", "reason", "outcome", "model", "stage", "rows", "size", "le", "version"}


@pytest.fixture
def metrics() -> Metrics:
    """With something in every family."""
    made = Metrics("1.2.3", MODELS)
    made.follow(in_flight=lambda: 3, queued=lambda: 4)
    made.request_finished("storyloom.v1.StoryService/GenerateStory", "OK", 0.5)
    made.request_rejected("QUEUE_FULL")
    made.story_started(0.2)
    made.first_event(0.01)
    made.first_preview(0.3)
    for stage in ("encode", "denoise", "decode"):
        made.stage_finished(stage, "mini", 1.0)
    made.story_finished("mini", "done", 2.0)
    made.story_cancelled("denoising")
    made.deadline_missed()
    made.picture_finished(64, 32)
    made.batch_stepped(0.05, rows=12, max_rows=48, stories=2, size="64x32")
    made.engine_is_up(True)
    made.engine_restarted()
    made.memory_peaked(1 << 30)
    made.store_written(0.002)
    made.loop_lagged(0.001)
    return made


def families(metrics: Metrics) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_names_follow_the_rules(metrics: Metrics) -> None:
    found = families(metrics)
    assert len(found) > 25
    for name, family in found.items():
        assert re.fullmatch(r"storyloom(_[a-z0-9]+)+", name)
        assert family.documentation.strip(), f"{name} has no help text"
        assert not re.search(r"_(ms|us|ns|milliseconds|micro|mib|kib|gib|mb|percent|minutes|hours)(_|$)", name), name
        assert not re.search(r"_(count|sum|bucket|total_total)$", name), name
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_ratio", "_rows", "_bytes")), f"{name} has no base unit"
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{name}_total"
            assert set(sample.labels) <= LABELS


def test_every_family_that_is_promised_is_there(metrics: Metrics) -> None:
    promised = (
        "requests rejected stories stories_in_flight stories_queued queue_wait_seconds story_duration_seconds "
        "request_duration_seconds time_to_first_event_seconds time_to_first_preview_seconds stage_duration_seconds "
        "denoise_step_duration_seconds batch_rows batch_occupancy_ratio steps images image_pixels cancelled "
        "deadline_missed engine_restarts engine_up peak_memory_bytes store_write_seconds event_loop_lag_seconds "
        "model_info build_info"
    )
    assert {f"storyloom_{name}" for name in promised.split()} <= set(families(metrics))


def test_values_arrive_in_base_units(metrics: Metrics) -> None:
    assert value(metrics, "storyloom_images_total") == 1
    assert value(metrics, "storyloom_image_pixels_total") == 64 * 32
    assert value(metrics, "storyloom_steps_total") == 2
    assert value(metrics, "storyloom_batch_occupancy_ratio_sum") == 0.25
    assert value(metrics, "storyloom_denoise_step_duration_seconds_count", rows="16", size="64x32") == 1
    assert value(metrics, "storyloom_stories_in_flight") == 3
    assert value(metrics, "storyloom_stories_queued") == 4
    assert value(metrics, "storyloom_build_info", version="1.2.3") == 1
    assert value(metrics, "storyloom_model_info", model="large") == 1


def test_a_model_that_is_not_served_makes_no_new_series(metrics: Metrics) -> None:
    for name in ("made", "up", "by a client"):
        metrics.story_finished(name, "failed", 1.0)
    assert value(metrics, "storyloom_stories_total", outcome="failed", model="other") == 3
    models = {sample.labels["model"] for sample in families(metrics)["storyloom_stories"].samples}
    assert models == {"mini", "other"}


@pytest.mark.parametrize(("rows", "bucket"), [(1, "1"), (2, "2"), (3, "4"), (32, "32"), (33, "64")])
def test_rows_are_labelled_by_powers_of_two(rows: int, bucket: str) -> None:
    metrics = Metrics("1", MODELS)
    metrics.batch_stepped(0.1, rows=rows, max_rows=64, stories=1, size="8x8")
    assert value(metrics, "storyloom_denoise_step_duration_seconds_count", rows=bucket, size="8x8") == 1


def test_two_servers_in_one_process_do_not_share_counts() -> None:
    first, second = Metrics("1", MODELS), Metrics("1", MODELS)
    first.engine_restarted()
    assert value(second, "storyloom_engine_restarts_total") == 0
