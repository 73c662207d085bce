"""What a story cost, and what it cost to find its characters first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.server.scrape import Scrape


@dataclass(frozen=True)
class DiscoveryCost:
    """What finding all characters of a story cost, once for the story.

    Attributes:
        evaluations: of the UNet, of one sample each.
        seconds: from asking to knowing them, on an otherwise idle server.
    """

    evaluations: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What a story cost. `counted_by` says where the evaluations come from: the server's metrics, or the settings.

    Attributes:
        evaluations: of the UNet, of one sample each, divided by the frames.
        seconds: encoding, denoising and decoding on an otherwise idle server, divided by the frames.
        processor: seconds of the server's processes, divided by the frames; None where they are out of reach.
        discovery: of the characters that were found before the story was made, which is in neither of the two.
    """

    evaluations: float
    counted_by: str
    seconds: float
    discovery: DiscoveryCost | None = None
    processor: float | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made of one.

        Raises:
            TypeError: it is none.
        """
        found = record.get("discovery")
        return cls(**{**record, "discovery": None if found is None else DiscoveryCost(**found)})


def unet_rows(metrics: Scrape | None) -> float | None:
    """UNet evaluations that a server counts up to now; None where its metrics are out of reach."""
    return None if metrics is None else metrics.read().total("storyloom_batch_rows_sum")
