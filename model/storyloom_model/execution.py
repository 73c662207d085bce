"""How a model's UNet is run: number format, padding, compiled or captured. Plain values; loads without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]

ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """Options of a loaded model. The defaults run anywhere.

    Attributes:
        dtype: of the weights; latents and solvers stay float32.
        compile: UNet calls go through ``torch.compile``; where that fails they run as they are.
        cuda_graphs: UNet calls are captured once for each bucket, size and set of features, and replayed.
        channels_last: weights of convolutions in that order of memory, which is faster on tensor cores.
        buckets: numbers of rows, ascending. A UNet call that stories share is padded to the next one; one with more
            rows than the largest is not padded, nor captured. Empty: no call is.
        max_graphs: captured graphs that are kept; each holds memory of its own.
        max_variants: UNets with LoRA fused in that are kept; each holds the weights that it changes.

    Raises:
        ValueError: buckets, max_graphs or max_variants make no sense, or graphs are wanted without buckets.
    """

    dtype: Dtype = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    channels_last: bool = False
    buckets: tuple[int, ...] = ROW_BUCKETS
    max_graphs: int = 16
    max_variants: int = 4

    def __post_init__(self) -> None:
        if list(self.buckets) != sorted({bucket for bucket in self.buckets if bucket > 0}):
            raise ValueError(f"buckets must be positive and ascending; got {self.buckets}")
        if self.max_graphs < 1:
            raise ValueError(
                f"max_graphs must be at least 1; got {self.max_graphs}; to go without, set cuda_graphs off"
            )
        if self.max_variants < 1:
            raise ValueError(f"max_variants must be at least 1, or no story can have a LoRA; got {self.max_variants}")
        if self.cuda_graphs and not self.buckets:
            raise ValueError("CUDA graphs need row buckets; name some, or set cuda_graphs off")

    def check_device(self, kind: str) -> None:
        """Refuses options that a kind of device, such as "cpu", does not have.

        Raises:
            ValueError: graphs or channels_last are wanted on another device than CUDA's. There is nothing to capture
                elsewhere, and the CPU's group normalisation loses accuracy in channels-last order.
        """
        wanted = [name for name in ("cuda_graphs", "channels_last") if getattr(self, name)]
        if kind != "cuda" and wanted:
            raise ValueError(f"{' and '.join(wanted)} need a CUDA device, and this one is {kind}; set them off")

    def bucket(self, rows: int) -> int | None:
        """The rows that a call of some rows is padded to; None when it stays as it is."""
        return next((bucket for bucket in self.buckets if bucket >= rows), None)
