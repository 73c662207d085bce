"""Reads the server's metrics as Prometheus does."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples of one scrape, by name and labels."""

    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str) -> float:
        """Sum over all labels; 0 where there is no such sample yet."""
        return sum(value for (found, _), value in self.values.items() if found == name)

    def histogram(self, name: str) -> list[tuple[float, float]]:
        """Upper bounds and cumulative counts of an unlabelled histogram."""
        found = (
            (dict(labels)["le"], value) for (each, labels), value in self.values.items() if each == f"{name}_bucket"
        )
        return sorted((float(bound), value) for bound, value in found)


class Scrape:
    """The ``/metrics`` endpoint on a port of the loopback interface."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    def read(self) -> Samples:
        with urllib.request.urlopen(self._url, timeout=30) as answer:  # noqa: S310 - an http URL
            text = answer.read().decode()
        return Samples(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )


def quantile_between(before: Samples, after: Samples, name: str, share: float) -> float:
    """Quantile of what a histogram counted between two scrapes, linear within its bucket."""
    earlier = dict(before.histogram(name))
    counts = [(bound, value - earlier.get(bound, 0.0)) for bound, value in after.histogram(name)]
    wanted = share * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, value in counts:
        if value >= wanted:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / max(value - below, 1e-9)
        low, below = bound, value
    return low
