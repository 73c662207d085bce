"""What Prometheus sees of the server: families under one prefix, in base units, with few labels.

Labels are bounded: methods, codes, reasons and stages are names in the code, models those that are served, sizes those
of their packages. Ids and prompts are never labels. The engine is another process; it reports by message, and
everything is counted here, in the service's.
"""

from collections.abc import Callable, Collection
from typing import Literal, TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

Stage: TypeAlias = Literal["queued", "encoding", "denoising", "decoding"]
Outcome: TypeAlias = Literal["done", "failed", "cancelled", "lost"]

_PREFIX = "storyloom"
# Stories take from a tenth of a second to minutes.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_OTHER = "other"

# Else each counter and histogram has a second series, for the time when it was made.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All families, on a registry of their own. Safe from any thread.

    Args:
        version: of the server.
        models: names of the served models; the label ``model`` takes no other value (but "other").
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, version: str, models: Collection[str]) -> None:
        self._models = frozenset(models)
        self.registry = CollectorRegistry()
        ProcessCollector(namespace=_PREFIX, registry=self.registry)
        self._make_requests()
        self._make_stories()
        self._make_engine()
        self._make_server()
        self._info("build", "Version of the server.").info({"version": version})
        model_info = self._gauge("model_info", "1 for each served model.", ("model",))
        for name in models:
            model_info.labels(name).set(1)

    def exposition(self) -> bytes:
        """What ``/metrics`` answers."""
        return generate_latest(self.registry)

    # Requests

    def request_finished(self, method: str, code: str, seconds: float) -> None:
        """A call ended, with whatever code; cancelled ones too."""
        self._requests.labels(method, code).inc()
        self._request_seconds.labels(method).observe(seconds)

    def request_rejected(self, reason: str) -> None:
        """A call was refused before a story came of it. ``reason``: of the ``StoryError``."""
        self._rejected.labels(reason).inc()

    # Stories

    def follow(self, *, in_flight: Callable[[], float], queued: Callable[[], float]) -> None:
        """Where the numbers of stories that are worked on and that wait come from; asked at every scrape."""
        self._in_flight.set_function(in_flight)
        self._queued.set_function(queued)

    def story_started(self, queue_seconds: float) -> None:
        """A story left the queue."""
        self._queue_seconds.observe(queue_seconds)

    def first_event(self, seconds: float) -> None:
        """The client has the first event of its story, so long after its request."""
        self._first_event_seconds.observe(seconds)

    def first_preview(self, seconds: float) -> None:
        """The client has the first picture of its story, a preview or a frame."""
        self._first_preview_seconds.observe(seconds)

    def stage_finished(self, stage: Literal["encode", "denoise", "decode"], model: str, seconds: float) -> None:
        """A story is through a stage."""
        self._stage_seconds.labels(stage, self._known(model)).observe(seconds)

    def story_finished(self, model: str, outcome: Outcome, seconds: float) -> None:
        """A story ended, so long after it was accepted."""
        self._stories.labels(outcome, self._known(model)).inc()
        self._story_seconds.labels(self._known(model)).observe(seconds)

    def story_cancelled(self, stage: Stage) -> None:
        """A story was cancelled while in ``stage``."""
        self._cancelled.labels(stage).inc()

    def deadline_missed(self) -> None:
        """A story was accepted and yet not done in time."""
        self._deadline_missed.inc()

    def picture_finished(self, width: int, height: int) -> None:
        """A frame's picture is made."""
        self._images.inc()
        self._pixels.inc(width * height)

    # Engine

    def batch_stepped(self, seconds: float, *, rows: int, max_rows: int, stories: int, size: str) -> None:
        """A batch step is done.

        Args:
            seconds: its duration.
            rows: that were in it, without padding.
            max_rows: that could have been.
            stories: that advanced by a step.
            size: of the pictures, such as ``512x512``.
        """
        self._step_seconds.labels(_rows_bucket(rows), size).observe(seconds)
        self._batch_rows.observe(rows)
        self._occupancy.observe(rows / max_rows)
        self._steps.inc(stories)

    def engine_is_up(self, up: bool) -> None:
        """The engine takes work, or not."""
        self._engine_up.set(up)

    def engine_restarted(self) -> None:
        """The engine process was started again."""
        self._engine_restarts.inc()

    def memory_peaked(self, peak_bytes: int) -> None:
        """The engine's highest use of device memory so far."""
        self._peak_bytes.set(peak_bytes)

    def references_encoded(
        self, outcome: Literal["encoded", "cached", "refused"], pictures: int, seconds: float | None = None
    ) -> None:
        """Reference pictures were encoded, found encoded, or of no use. ``seconds`` of the engine's work."""
        self._references.labels(outcome).inc(pictures)
        if seconds is not None:
            self._reference_seconds.observe(seconds)

    # Server

    def store_written(self, seconds: float) -> None:
        """A write to the store is durable."""
        self._store_seconds.observe(seconds)

    def loop_lagged(self, seconds: float) -> None:
        """The event loop came so late to a timer."""
        self._lag_seconds.observe(seconds)

    def _make_requests(self) -> None:
        self._requests = self._counter("requests", "Calls that ended.", ("method", "code"))
        self._request_seconds = self._histogram(
            "request_duration_seconds", "From a call's start to its end.", _SECONDS, ("method",)
        )
        self._rejected = self._counter("rejected", "Calls that were refused before a story came of them.", ("reason",))

    def _make_stories(self) -> None:
        self._stories = self._counter("stories", "Accepted stories that ended.", ("outcome", "model"))
        self._in_flight = self._gauge("stories_in_flight", "Stories that are worked on.")
        self._queued = self._gauge("stories_queued", "Stories that wait.")
        self._queue_seconds = self._histogram("queue_wait_seconds", "Time of stories in the queue.", _SECONDS)
        self._story_seconds = self._histogram(
            "story_duration_seconds", "From a story's acceptance to its end.", _SECONDS, ("model",)
        )
        self._first_event_seconds = self._histogram(
            "time_to_first_event_seconds", "From a request to its first event.", _SHORT_SECONDS
        )
        self._first_preview_seconds = self._histogram(
            "time_to_first_preview_seconds", "From a request to its first picture, previews included.", _SECONDS
        )
        self._stage_seconds = self._histogram(
            "stage_duration_seconds", "Time of stories in a stage.", _SECONDS, ("stage", "model")
        )
        self._images = self._counter("images", "Pictures made, previews not counted.")
        self._pixels = self._counter("image_pixels", "Pixels of these pictures.")
        self._cancelled = self._counter("cancelled", "Stories cancelled, by the stage in which they were.", ("stage",))
        self._deadline_missed = self._counter("deadline_missed", "Accepted stories that were not done in time.")

    def _make_engine(self) -> None:
        self._step_seconds = self._histogram(
            "denoise_step_duration_seconds", "Time of a batch step.", _SHORT_SECONDS, ("rows", "size")
        )
        self._batch_rows = self._histogram("batch_rows", "Rows of a batch step.", _ROWS)
        self._occupancy = self._histogram("batch_occupancy_ratio", "Share of the possible rows in a step.", _RATIOS)
        self._steps = self._counter("steps", "Denoising steps, of each story in a batch.")
        self._engine_up = self._gauge("engine_up", "1 while the engine takes work.")
        self._engine_restarts = self._counter("engine_restarts", "Restarts of the engine process.")
        self._peak_bytes = self._gauge("peak_memory_bytes", "Highest use of device memory.")
        self._references = self._counter(
            "references", "Reference pictures, by what came of them: encoded, cached, refused.", ("outcome",)
        )
        self._reference_seconds = self._histogram(
            "reference_encode_seconds", "The engine's time for one character's references.", _SHORT_SECONDS
        )

    def _make_server(self) -> None:
        self._store_seconds = self._histogram("store_write_seconds", "Time of a durable write.", _SHORT_SECONDS)
        self._lag_seconds = self._histogram("event_loop_lag_seconds", "How late timers are.", _SHORT_SECONDS)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, namespace=_PREFIX, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, namespace=_PREFIX, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, namespace=_PREFIX, registry=self.registry, buckets=buckets)

    def _info(self, name: str, text: str) -> Info:
        return Info(name, text, namespace=_PREFIX, registry=self.registry)

    def _known(self, model: str) -> str:
        return model if model in self._models else _OTHER


def _rows_bucket(rows: int) -> str:
    """The smallest power of two that holds ``rows``."""
    return str(1 << max(0, rows - 1).bit_length())
