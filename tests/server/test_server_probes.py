"""The probes' HTTP server, against well- and ill-behaved clients."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from storyloom_server.metrics import Metrics
from storyloom_server.probes import Probes, ProbesAddressError

state = {"live": True, "ready": False}


@pytest.fixture(scope="module")
def probes() -> Iterator[Probes]:
    with Probes(
        "127.0.0.1", 0, Metrics("1", ["mini"]), live=lambda: state["live"], ready=lambda: state["ready"]
    ) as running:
        yield running


def get(probes: Probes, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{probes.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def raw(probes: Probes, data: bytes) -> bytes:
    """Sends bytes, says that there are no more, and reads what comes back."""
    with socket.create_connection(("127.0.0.1", probes.port), timeout=30) as connection:
        connection.sendall(data)
        answer = b""
        # It may have answered and left before it read all.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
        return answer


def test_readiness_and_liveness_are_told_apart(probes: Probes) -> None:
    assert get(probes, "/livez") == (200, "ok\n")
    assert get(probes, "/readyz") == (503, "no\n")
    state["ready"] = True
    assert get(probes, "/readyz?verbose") == (200, "ok\n")
    state["live"] = False
    assert get(probes, "/livez") == (503, "no\n")
    state.update(live=True, ready=False)


def test_metrics_can_be_scraped(probes: Probes) -> None:
    status, text = get(probes, "/metrics")
    assert status == 200
    assert "storyloom_engine_up" in {family.name for family in text_string_to_metric_families(text)}


def test_anything_else_is_not_found(probes: Probes) -> None:
    assert get(probes, "/")[0] == 404
    assert get(probes, "/metrics/../../etc/passwd")[0] == 404
    assert get(probes, "/metrics", method="HEAD") == (200, "")
    assert get(probes, "/metrics", method="POST")[0] == 501


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff\xfe" * 50,
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_bad_requests_do_no_harm(probes: Probes, data: bytes) -> None:
    answer = raw(probes, data)
    assert b"200 OK" not in answer
    assert b"Traceback" not in answer
    assert get(probes, "/livez") == (200, "ok\n")


def test_idle_clients_keep_nobody_else_waiting(probes: Probes) -> None:
    idle = [socket.create_connection(("127.0.0.1", probes.port), timeout=30) for _ in range(20)]
    try:
        assert get(probes, "/livez") == (200, "ok\n")
        assert idle[0].recv(1) == b""  # It is sent away after a while.
    finally:
        for connection in idle:
            connection.close()


def test_a_taken_port_is_told(probes: Probes) -> None:
    with pytest.raises(ProbesAddressError, match="choose another --metrics-port"):
        Probes("127.0.0.1", probes.port, Metrics("1", []), live=lambda: True, ready=lambda: True)
