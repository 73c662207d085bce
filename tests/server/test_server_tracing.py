"""Traces: parents, times and attributes, in memory and over the wire to a real OTLP receiver."""

import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from storyloom_server.tracing import NO_TRACE, Tracing, TracingError, set_up

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METADATA = (("x", "y"), ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"), ("tracestate", "vendor=1"))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def make(tracing: Tracing, began: float, metadata: Any = METADATA) -> None:
    """A story with one of each."""
    story = tracing.story(metadata, "story-1", model="mini", frames=3)
    story.stage("queue", began, began + 1)
    story.step(1, began + 1, began + 1.25, rows=12, stories=2)
    story.end("done")


def test_spans_are_the_client_s_and_have_the_engine_s_times(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    began, wall = time.monotonic() - 10, time.time() - 10
    make(tracing, began)
    found = spans(exporter)
    story, queue, step = found["story"], found["queue"], found["step"]
    assert story.context is not None
    assert story.parent is not None
    assert format(story.context.trace_id, "032x") == TRACE_ID
    assert format(story.parent.span_id, "016x") == SPAN_ID
    assert dict(story.attributes or {}) == {
        "storyloom.story_id": "story-1",
        "storyloom.model": "mini",
        "storyloom.frames": 3,
        "storyloom.outcome": "done",
    }
    for child in (queue, step):
        assert child.parent is not None
        assert child.parent.span_id == story.context.span_id
        assert child.context is not None
        assert child.context.trace_id == story.context.trace_id
        assert child.start_time is not None
        assert child.end_time is not None
    assert queue.start_time is not None
    assert abs(queue.start_time / 1e9 - wall) < 5
    assert abs((step.end_time or 0) - (step.start_time or 0) - 0.25e9) < 1e4
    assert dict(step.attributes or {}) == {
        "storyloom.step": 1,
        "storyloom.batch_rows": 12,
        "storyloom.batch_stories": 2,
    }


@pytest.mark.parametrize("metadata", [(), (("traceparent", "nonsense"),), (("traceparent", "00-0-0-01"),)])
def test_without_a_good_parent_a_story_has_a_trace_of_its_own(
    tracing: Tracing, exporter: InMemorySpanExporter, metadata: Any
) -> None:
    make(tracing, time.monotonic(), metadata)
    story = spans(exporter)["story"]
    assert story.parent is None
    assert story.context is not None
    assert story.context.trace_id != 0


def test_a_failed_story_says_why(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    story = tracing.story(METADATA, "story-1")
    assert story.trace_id == TRACE_ID
    assert story.traceparent is not None
    assert story.traceparent.startswith(f"00-{TRACE_ID}-")
    story.end("failed", error="STORY_DIVERGED")
    status = spans(exporter)["story"].status
    assert (status.status_code.name, status.description) == ("ERROR", "STORY_DIVERGED")


def test_a_client_that_does_not_sample_is_not_recorded(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    story = tracing.story((("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00"),), "story-1")
    assert story is NO_TRACE
    story.step(1, 0, 1, rows=1, stories=1)
    story.end("done")
    assert not exporter.get_finished_spans()


def test_without_an_endpoint_nothing_is_recorded() -> None:
    tracing = set_up(None)
    story = tracing.story(METADATA, "story-1", model="mini")
    assert story is NO_TRACE
    assert (story.trace_id, story.traceparent) == (None, None)
    make(tracing, 0.0)
    tracing.close()


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """What a collector is to us."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the wire contract's name
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, int]]:
    made = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, port
    server.stop(0).wait()


def test_spans_reach_an_otlp_receiver(receiver: tuple[Receiver, int]) -> None:
    made, port = receiver
    tracing = set_up(f"http://127.0.0.1:{port}")
    make(tracing, time.monotonic())
    tracing.close()
    resources = [each for request in made.requests for each in request.resource_spans]
    names = {span.name for each in resources for scope in each.scope_spans for span in scope.spans}
    assert names == {"story", "queue", "step"}
    attributes = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert attributes["service.name"] == "storyloom"


def test_an_endpoint_that_is_none_is_told() -> None:
    with pytest.raises(TracingError, match="write it as http://"):
        set_up("localhost:4317")
