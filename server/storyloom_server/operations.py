"""Everything around the stories, made from the options: who may call, what is measured, traced, checked and encrypted.

The server makes one ``Operations`` before it listens, starts it on its event loop and stops it at the end.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Collection, Sequence

import grpc

from storyloom_server import tracing
from storyloom_server.access import Gate, exposure_warning
from storyloom_server.authentication import Authentication
from storyloom_server.interceptor import CallMetrics
from storyloom_server.logs import fields
from storyloom_server.looplag import LoopLag
from storyloom_server.metrics import Metrics
from storyloom_server.options import ServerOptions
from storyloom_server.probes import Probes
from storyloom_server.safety_checks import load_safety
from storyloom_server.tls import TlsFiles, server_credentials

log = logging.getLogger("storyloom.operations")

_MIB = 1024 * 1024
# An event loop that ran no timer for so long will not recover.
_STUCK_SECONDS = 60.0


class Operations:
    """The parts, under their names: ``metrics``, ``gate``, ``tracing``, ``safety``, ``lag``.

    Args:
        options: of the server.
        version: of the server.
        models: names of the served models.

    Raises:
        SetupError: a file or address that the options name cannot be used.
    """

    def __init__(self, options: ServerOptions, version: str, models: Collection[str]) -> None:
        self._options = options
        self.metrics = Metrics(version, models)
        self.gate = Gate(options.tokens, anonymous_admin=options.admin)
        self.safety = load_safety(options)
        self.tracing = tracing.set_up(options.otlp_endpoint)
        self.lag = LoopLag(self.metrics.loop_lagged)
        self._credentials = _credentials(options)
        self._probes: Probes | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:  # type: ignore[type-arg]
        """For the server, in this order: calls without a token are counted too."""
        return [CallMetrics(self.metrics), Authentication(self.gate)]

    @property
    def channel_options(self) -> Sequence[tuple[str, int]]:
        """For the server."""
        age_ms = round(self._options.max_connection_age_seconds * 1000)
        return [
            ("grpc.max_receive_message_length", round(self._options.max_request_mib * _MIB)),
            # Without a grace: open streams go on, and new calls take a new connection.
            *([("grpc.max_connection_age_ms", age_ms)] if age_ms else []),
        ]

    def add_port(self, server: grpc.aio.Server, address: str) -> int:
        """Listens on ``address``, encrypted if the options say so, and returns the port.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        if self._credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._credentials)

    def start(self, ready: Callable[[], bool]) -> None:
        """Begins to watch, on the running event loop. ``ready`` is asked by probes, from another thread.

        Raises:
            SetupError: the metrics' address cannot be bound.
        """
        warning = exposure_warning(
            self._options.host,
            tokens=self._options.tokens is not None,
            encrypted=self._credentials is not None,
        )
        if warning is not None:
            log.warning("exposed: %s", warning)
        if self._options.metrics_port:
            self._probes = Probes(
                self._options.host,
                self._options.metrics_port,
                self.metrics,
                live=lambda: self.lag.silence() < _STUCK_SECONDS,
                ready=ready,
            )
            log.info("metrics are served", extra=fields(port=self._probes.port))
        self.lag.start()
        loop = asyncio.get_running_loop()
        self._watching = loop.create_task(self.gate.watch(), name="tokens-watch")
        loop.add_signal_handler(signal.SIGHUP, self.gate.reload)

    async def stop(self) -> None:
        """Ends all of it; traces that are left are sent."""
        if self._watching is not None:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
            self._watching.cancel()
        await self.lag.stop()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._probes is not None:
            self._probes.close()
        self.tracing.close()


def _credentials(options: ServerOptions) -> grpc.ServerCredentials | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    return server_credentials(TlsFiles(options.tls_cert, options.tls_key, options.tls_client_ca))
