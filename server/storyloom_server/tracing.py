"""OpenTelemetry traces of stories: under the client's span, with a span for each thing that happens to a story.

The engine is another process, which reports when things began and ended after the fact; spans are made from these
times. All times are monotonic seconds, which on one machine are the same in every process. Without an endpoint nothing
is recorded, and a ``StoryTrace`` costs next to nothing.
"""

import os
import time
from collections.abc import Iterable
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from storyloom_server.setup_error import SetupError

_SERVICE_NAME = "storyloom"
_PROPAGATED = ("traceparent", "tracestate")
_propagator = TraceContextTextMapPropagator()


class TracingError(SetupError):
    """Traces cannot be sent as asked."""


class StoryTrace:
    """The spans of one story. ``end`` it, or it is never seen.

    Times are monotonic seconds; attributes are strings and numbers, never prompts.
    """

    __slots__ = ("_context", "_offset", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, offset: int) -> None:
        self._tracer = tracer
        self._span = span
        self._offset = offset
        self._context = trace.set_span_in_context(span)

    @property
    def trace_id(self) -> str | None:
        """For log lines; None when nothing is recorded."""
        return format(self._span.get_span_context().trace_id, "032x") if self._span.is_recording() else None

    @property
    def traceparent(self) -> str | None:
        """Carries the story's span on: to another process, or over a restart of this one."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, self._context)
        return carrier.get("traceparent")

    def stage(self, name: str, start: float, end: float, **attributes: str | int | float) -> None:
        """Something that took from ``start`` to ``end``: queue, encode, step, decode, store."""
        span = self._tracer.start_span(
            name, self._context, attributes=_named(attributes), start_time=_epoch(start, self._offset)
        )
        span.end(_epoch(end, self._offset))

    def step(self, index: int, start: float, end: float, *, rows: int, stories: int) -> None:
        """One denoising step: its number from 1, and the rows and stories of the batch that it was in."""
        self.stage("step", start, end, step=index, batch_rows=rows, batch_stories=stories)

    def end(self, outcome: str, *, error: str | None = None) -> None:
        """The story ended. ``error``: its reason, when it did not end well."""
        self._span.set_attribute("storyloom.outcome", outcome)
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()


class _NoTrace(StoryTrace):
    """Records nothing."""

    __slots__ = ()

    def __init__(self) -> None:
        """Needs nothing."""

    trace_id = None
    traceparent = None

    def stage(self, name: str, start: float, end: float, **attributes: str | int | float) -> None:
        pass

    def step(self, index: int, start: float, end: float, *, rows: int, stories: int) -> None:
        pass

    def end(self, outcome: str, *, error: str | None = None) -> None:
        pass


NO_TRACE: StoryTrace = _NoTrace()


class Tracing:
    """Begins the traces of stories.

    Args:
        provider: of OpenTelemetry's SDK; None: nothing is recorded.
    """

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer: Tracer | None = None if provider is None else provider.get_tracer("storyloom_server")

    def story(
        self, metadata: Iterable[tuple[str, str | bytes]], story_id: str, **attributes: str | int | float
    ) -> StoryTrace:
        """Opens the span of a story under the one that the call's metadata names (W3C ``traceparent``)."""
        if self._tracer is None:
            return NO_TRACE
        carrier = {key: str(value) for key, value in metadata if key in _PROPAGATED}
        parent = _propagator.extract(carrier, otel_context.Context())
        offset = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            "story",
            parent,
            kind=trace.SpanKind.SERVER,
            attributes=_named({"story_id": story_id, **attributes}),
        )
        return StoryTrace(self._tracer, span, offset) if span.is_recording() else NO_TRACE

    def close(self) -> None:
        """Sends what is left. May take seconds when nobody listens; call it off the event loop."""
        if self._provider is not None:
            self._provider.shutdown()


def set_up(endpoint: str | None) -> Tracing:
    """Tracing to an OTLP receiver over gRPC; http:// for a plain one, https:// for TLS. None: off.

    The environment's OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS
    count too.

    Raises:
        TracingError: the SDK is not installed, or the endpoint is no such URL.
    """
    if endpoint is None:
        return Tracing()
    if not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"{endpoint} is not an OTLP endpoint; write it as http://HOST:4317 or https://HOST:4317")
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError("traces need OpenTelemetry's SDK; run: pip install 'storyloom[tracing]'") from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": _SERVICE_NAME}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)


def _epoch(monotonic_seconds: float, offset: int) -> int:
    return int(monotonic_seconds * 1e9) + offset


def _named(attributes: dict[str, str | int | float]) -> dict[str, str | int | float]:
    return {f"storyloom.{name}": value for name, value in attributes.items()}
