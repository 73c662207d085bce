"""The life of the server process: warm-up before readiness, draining, and every way to die."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.serving import ROOT, error_details, generate, gone, serving, story, wait_until

SLOW = {"STORYLOOM_TEST_STEP_SECONDS": "0.05"}
STORY_SERVICE = "storyloom.v1.StoryService"


def health_of(channel: grpc.Channel, service: str) -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30, wait_for_ready=True)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def started(call: Any) -> None:
    """Reads until the story takes its first step."""
    for event in call:
        if event.progress.step == 1:
            return
    pytest.fail("the story never took a step")


def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    details = error_details(caught.value)
    assert "RetryInfo" in details
    return caught.value.code(), details["ErrorInfo"].reason


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ready_only_after_the_warm_up(tiny_package: Path, tmp_path: Path) -> None:
    port = free_port()
    gate = tmp_path / "gate"
    gated = {"STORYLOOM_TEST_LOAD_GATE": str(gate)}
    with serving(tmp_path, tiny_package, "--port", str(port), environment=gated, wait=False) as server:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert health_of(channel, "") == "SERVING"
            assert health_of(channel, STORY_SERVICE) == "NOT_SERVING"
            assert refusal(generate(channel, story())) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
            assert not server.ready_file.exists()
            gate.touch()
            server.wait_ready()
            assert server.address == f"127.0.0.1:{port}"
            assert health_of(channel, STORY_SERVICE) == "SERVING"
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == f"storyloom: ready on 127.0.0.1:{port}\n"
        assert server.terminate() == 0


def test_sigterm_finishes_running_stories_and_refuses_new_ones(tiny_package: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_package, environment=SLOW) as server, grpc.insecure_channel(server.address) as channel:
        engine_pid = server.engine_pid
        running = generate(channel, story(steps=60))
        started(running)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: health_of(channel, STORY_SERVICE) == "NOT_SERVING", 20)
        assert health_of(channel, "") == "SERVING"
        assert refusal(generate(channel, story())) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert list(running)[-1].HasField("done")
        assert server.process.wait(60) == 0
        assert gone(engine_pid)
        assert not server.ready_file.exists()


def test_stories_longer_than_the_drain_are_told(tiny_package: Path, tmp_path: Path) -> None:
    with (
        serving(tmp_path, tiny_package, "--drain-seconds", "0.2", environment=SLOW) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        running = generate(channel, story(steps=100))
        started(running)
        server.process.send_signal(signal.SIGINT)
        assert refusal(running) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert server.process.wait(60) == 0
        assert gone(server.engine_pid)


def test_a_second_signal_ends_the_drain(tiny_package: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_package, environment=SLOW) as server, grpc.insecure_channel(server.address) as channel:
        running = generate(channel, story(steps=100))
        started(running)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.log, 20)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert refusal(running) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < 15


def test_a_model_that_does_not_load_ends_the_server(tiny_package: Path, tmp_path: Path) -> None:
    broken = tmp_path / "break-load"
    broken.symlink_to(tiny_package)
    with serving(tmp_path, broken, wait=False) as server:
        assert server.process.wait(240) == 1
        assert "the engine cannot start: OSError: there is no model in" in server.log
        assert not server.ready_file.exists()


def test_a_taken_port_is_told(tiny_package: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(tmp_path, tiny_package, "--port", str(port), wait=False) as server:
            assert server.process.wait(240) == 2
            assert f"cannot listen on 127.0.0.1:{port}; choose another" in server.log


def run_to_its_end(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / name) for name in ("kernels", "model", "server", "clients/python"))
    return subprocess.run(
        [sys.executable, "-m", "storyloom_server", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--port", "70000"), "port"),
        (("--max-rows", "0"), "--max-rows: Input should be greater than or equal to 1"),
        (("--ready-file", "no/such/file"), "no/such is not a folder; make it first"),
        (("--backend", "nonsense"), "module:class"),
        (("--model", "no/such/folder"), "give the folder of a model package"),
    ],
)
def test_bad_options_are_told(arguments: tuple[str, ...], told: str) -> None:
    ended = run_to_its_end(*arguments)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_command_line_goes_before_environment(tmp_path: Path) -> None:
    from_environment = run_to_its_end(STORYLOOM_MODEL="from/environment")
    assert "from/environment" in from_environment.stderr
    from_both = run_to_its_end("--model", "from/arguments", STORYLOOM_MODEL="from/environment")
    assert "from/arguments" in from_both.stderr


def test_logs_can_be_json(tiny_package: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_package, "--log-format", "json") as server:
        assert server.terminate() == 0
        entries = [json.loads(line) for line in server.log.splitlines()]
    ready = next(entry for entry in entries if entry["message"] == "engine ready")
    assert ready["level"] == "info"
    assert ready["seconds"] >= 0
