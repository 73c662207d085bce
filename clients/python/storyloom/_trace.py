"""Passes the caller's trace on to the server, where OpenTelemetry is installed."""

from __future__ import annotations


def trace_headers() -> tuple[tuple[str, str], ...]:
    """Returns the W3C ``traceparent`` (and ``tracestate``) of the active span; nothing where there is none."""
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return ()
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
