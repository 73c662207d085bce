"""A small HTTP server for machines: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for probes.

It has threads of its own, so that it answers while the event loop is busy. It reads no bodies, keeps no connection and
gives a client a few seconds.
"""

import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from storyloom_server.metrics import Metrics
from storyloom_server.setup_error import SetupError

log = logging.getLogger("storyloom.probes")

_CLIENT_SECONDS = 5.0
_TEXT = "text/plain; charset=utf-8"


class ProbesAddressError(SetupError):
    """The probes cannot listen where they were told to."""


class Probes:
    """Serves until it is closed.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        metrics: what ``/metrics`` shows.
        live: whether the process is of use at all; if not, it should be restarted. Must not depend on load.
        ready: whether stories are taken now.

    Raises:
        ProbesAddressError: the address cannot be bound.
    """

    def __init__(
        self, host: str, port: int, metrics: Metrics, *, live: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        answers: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
            "/metrics": lambda: (HTTPStatus.OK, metrics.content_type, metrics.exposition()),
            "/livez": lambda: _state(live()),
            "/readyz": lambda: _state(ready()),
        }
        try:
            self._server = _server_class(host)((host, port), _handler_class(answers))
        except OSError as error:
            raise ProbesAddressError(
                f"cannot listen on {host}:{port} for metrics ({error.strerror}); choose another --metrics-port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Answers no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _state(good: bool) -> tuple[HTTPStatus, str, bytes]:
    return (HTTPStatus.OK, _TEXT, b"ok\n") if good else (HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"no\n")


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that leaves in the middle is no news."""
            log.debug("a probe's client failed", exc_info=True)

    return Server


def _handler_class(
    answers: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS
        server_version = "storyloom"
        sys_version = ""

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            answer = answers.get(self.path.partition("?")[0])
            status, kind, body = answer() if answer else (HTTPStatus.NOT_FOUND, _TEXT, b"not found\n")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Handler
