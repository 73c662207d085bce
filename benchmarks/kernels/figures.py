"""The figures that are read off the records, each with its aim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.kernels.records import Record
from benchmarks.kernels.unet import AMSA, PLAIN, PLAIN_FUSED


@dataclass(frozen=True)
class Figure:
    """One number of an op at a shape, and what it should be.

    `read` takes a record and the bytes a second of a copy, and returns None where something that it needs did not run.
    `aimed` says whether the aim speaks of the record's shape.
    """

    op: str
    name: str
    unit: str
    target: float
    at_least: bool
    read: Callable[[Record, float], float | None]
    aimed: Callable[[Record], bool]

    def met(self, value: float) -> bool:
        return value >= self.target if self.at_least else value <= self.target

    @property
    def aim(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.target:g}{self.unit}"

    def text(self, value: float, *, unit: bool = True) -> str:
        digits = 0 if value >= 100 else 1 if value >= 10 else 2
        return f"{value:.{digits}f}{self.unit if unit else ''}"


def measured(record: Record, name: str, what: str = "milliseconds") -> float | None:
    """Of one implementation; None where it did not run."""
    found: Record = next((result for result in record["results"] if result["name"] == name), {})
    value: float | None = found.get(what)
    return value


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def best(record: Record, *names: str) -> float | None:
    """The least time of those implementations that ran."""
    return min((time for name in names if (time := measured(record, name)) is not None), default=None)


def _teraflops(record: Record, rate: float) -> float | None:
    time = measured(record, "triton alone")
    return None if time is None else record["flops"] / time / 1e9


def _faster(*rivals: str, own: str = "triton") -> Callable[[Record, float], float | None]:
    return lambda record, rate: ratio(best(record, *rivals), measured(record, own))


def _memory(record: Record, rate: float) -> float | None:
    share = ratio(*(measured(record, name, "extra_bytes") for name in ("triton", "sdpa")))
    return None if share is None else 100 * share


def _floor(record: Record, rate: float) -> float | None:
    time = measured(record, "triton")
    return None if time is None else time / (1000 * record["bytes"] / rate)


def _step(record: Record, rate: float) -> float | None:
    return ratio(measured(record, AMSA), best(record, PLAIN, PLAIN_FUSED))


def _always(record: Record) -> bool:
    return True


def _is_sdxl(record: Record) -> bool:
    return bool(record["width"] == 64)


FIGURES = (
    Figure("K1", "useful work, attention alone", " TFLOP/s", 380, True, _teraflops, _is_sdxl),
    Figure(
        "K1", "map to output, against the best of SDPA, Flex and xFormers", "x", 2, True,
        _faster("sdpa", "flex", "xformers"), _is_sdxl,
    ),
    Figure(
        "K1", "attention alone, against Flash varlen", "x", 1, True, _faster("varlen alone", own="triton alone"),
        _is_sdxl,
    ),
    Figure(
        "K1", "peak extra memory, of that of SDPA with a dense mask", " %", 5, False, _memory,
        lambda record: record["frames"] == 16,
    ),
    Figure("K2", "against the unfused sequence", "x", 2.5, True, _faster("sdpa"), _always),
    Figure("K2", "of its memory floor", "x", 1.4, False, _floor, _always),
    Figure(
        "K4", "against GroupNorm and SiLU of torch", "x", 3, True, _faster("torch"),
        lambda record: record["model"] == "VAE",
    ),
    Figure("UNet", "AMSA in all layers, of the faster plain UNet", "x", 1.6, False, _step, _always),
)  # fmt: skip
