"""`python -m storyloom_kernels.tune`: makes the entries of `tuning.json` for the GPU at hand.

Starts from the present entry of each kernel of K1 and K2, at each head dimension and size class, and changes one number
of it at a time for as long as the kernel gets faster. Run once for a GPU, then `python -m storyloom_kernels.aot`: newer
architectures without entries of their own use these, and may have less memory for them. Then commit the table: serving
looks tiles up and never times anything. K4 has no entries, since its tiles decide the order of its sums: they follow
from the shape of a row alone, so that a row's result does not depend on the device's table.

So far this has run in Triton's interpreter only, never on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import triton
from torch import Tensor

from storyloom_kernels.fused import cross_frame, identity, identity_backward
from storyloom_kernels.fused.foreground import union_bank
from storyloom_kernels.layout import GroupLayout
from storyloom_kernels.tuning import Tiles, architecture, size_class, tiles, width_class

TABLE = Path(__file__).with_name("tuning.json")
TOKENS, STREAM_TOKENS = 77, 16

Launches: TypeAlias = dict[str, Callable[[Tiles], Any]]
"""Launches with tiles to try, by the kernel that the tiles are of."""
Timer: TypeAlias = Callable[[Callable[[], Any]], float]
"""Calls something and says how many milliseconds it takes."""


@dataclass(frozen=True)
class Layer:
    """An attention layer: head dimension d, N positions, H heads, and the R rows that it is tuned with."""

    width: int
    positions: int
    heads: int
    rows: int = 8


LAYERS = (
    Layer(40, 4096, 8), Layer(40, 1024, 8), Layer(64, 4096, 10), Layer(64, 1024, 20), Layer(80, 2304, 8),
    Layer(80, 1024, 8), Layer(160, 2304, 8), Layer(160, 576, 8),
)  # fmt: skip
"""One of each size class for each head dimension."""


def neighbours(start: Tiles) -> Iterator[Tiles]:
    """Tiles that differ from others in one number."""
    for name in ("queries", "keys"):
        for size in (getattr(start, name) // 2, getattr(start, name) * 2):
            if 16 <= size <= 128:
                yield replace(start, **{name: size})
    yield replace(start, warps=4 if start.warps == 8 else 8)
    for stages in (start.stages - 1, start.stages + 1):
        if 1 <= stages <= 4:
            yield replace(start, stages=stages)


def fastest(start: Tiles, milliseconds: Callable[[Tiles], float]) -> tuple[Tiles, float]:
    """Tiles than which no neighbour is faster, and their time; each is timed once.

    Args:
        start: where the search begins.
        milliseconds: of some tiles; infinite for those that the GPU cannot take.

    Raises:
        ValueError: neither the start nor a neighbour of it can run.
    """
    times = {start: milliseconds(start)}
    best = start
    while True:
        nearby = list(neighbours(best))
        times |= {candidate: milliseconds(candidate) for candidate in nearby if candidate not in times}
        better = min((best, *nearby), key=times.__getitem__)
        if better == best:
            break
        best = better
    if math.isinf(times[best]):
        raise ValueError(f"neither {start} nor tiles beside them can run on this device")
    return best, times[best]


def _draw(layer: Layer, length: int, device: torch.device) -> Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = (layer.rows, length, layer.heads, layer.width)
    return torch.randn(shape, device=device, dtype=dtype).transpose(1, 2)


def _present(kernel: str, layer: Layer, device: torch.device) -> Tiles:
    return tiles(kernel, architecture(device), layer.width, layer.positions)


def cross_frame_launches(layer: Layer, device: torch.device) -> Launches:
    """K1 with one story and a quarter of foreground. The other half of a backward keeps its present tiles."""
    q, k, v, d_out = (_draw(layer, layer.positions, device) for _ in range(4))
    bank = union_bank(torch.rand(layer.rows, layer.positions, device=device) < 0.25)
    bounds = GroupLayout((layer.rows,)).bounds(device)
    of_queries = _present("cross_frame_query_gradient", layer, device)
    of_keys = _present("cross_frame_key_gradient", layer, device)
    forward = partial(cross_frame.forward, q, k, v, *bank, bounds)
    out, lse = forward(_present("cross_frame_forward", layer, device))
    backward = partial(cross_frame.backward, d_out, q, k, v, out, lse, *bank, bounds)
    return {
        "cross_frame_forward": forward,
        "cross_frame_query_gradient": lambda chosen: backward(chosen, of_keys),
        "cross_frame_key_gradient": lambda chosen: backward(of_queries, chosen),
    }


def identity_launches(layer: Layer, device: torch.device) -> Launches:
    """K2 with two streams, two maps and a region; likewise."""
    q, d_out = (_draw(layer, layer.positions, device) for _ in range(2))
    k, v = (_draw(layer, TOKENS, device) for _ in range(2))
    id_k, id_v = (_draw(layer, 2 * STREAM_TOKENS, device) for _ in range(2))
    ends = torch.tensor([[STREAM_TOKENS, 2 * STREAM_TOKENS]] * layer.rows, dtype=torch.int32, device=device)
    scale = torch.ones(layer.rows, 2, device=device)
    region, d_maps = (torch.rand(layer.rows, 2, layer.positions, device=device) for _ in range(2))
    marks = torch.rand(layer.rows, 2, TOKENS, device=device) < 0.1
    given = (q, k, v, id_k, id_v, ends, scale, region, marks)
    of_queries = _present("identity_query_gradient", layer, device)
    of_keys = _present("identity_key_gradient", layer, device)
    forward = partial(identity.forward, *given)
    _, _, lse, id_lse = forward(_present("identity_forward", layer, device))
    backward = partial(identity_backward.backward, *given, lse, id_lse, d_out, d_maps)
    return {
        "identity_forward": forward,
        "identity_query_gradient": lambda chosen: backward(chosen, of_keys),
        "identity_key_gradient": lambda chosen: backward(of_queries, chosen),
    }


def tune(layer: Layer, device: torch.device, timer: Timer) -> Iterator[tuple[str, Tiles, float]]:
    """For each kernel of K1 and K2, its key in the table, the best tiles found, and their milliseconds.

    For a gradient, the time is that of the whole backward.
    """
    for kernel, launch in (cross_frame_launches(layer, device) | identity_launches(layer, device)).items():

        def milliseconds(chosen: Tiles, launch: Callable[[Tiles], Any] = launch) -> float:
            try:
                return timer(partial(launch, chosen))
            except torch.AcceleratorError:
                raise  # the device is of no more use, and nor is what it measures
            except (triton.TritonError, RuntimeError) as error:
                print(f"  {chosen} cannot run: {type(error).__name__}")
                return math.inf

        found, time = fastest(_present(kernel, layer, device), milliseconds)
        key = f"{kernel}/{architecture(device)}/{width_class(layer.width)}/{size_class(layer.positions)}"
        yield key, found, time


def write_entries(file: Path, entries: dict[str, Tiles], made_by: str) -> None:
    """Puts entries into a table, in the place of those of the same keys; one line for each."""
    table: dict[str, list[int]] = json.loads(file.read_text())["tiles"]
    table |= {key: list(astuple(chosen)) for key, chosen in entries.items()}
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items())
    file.write_text(f'{{\n "made_by": {json.dumps(made_by)},\n "tiles": {{\n{lines}\n }}\n}}\n')


def main() -> None:
    widths = sorted({layer.width for layer in LAYERS})
    parser = argparse.ArgumentParser(prog="storyloom_kernels.tune", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=widths, choices=widths, help="head dimensions to tune")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "tuning times kernels on a GPU, and there is none\n")
    device = torch.device("cuda")
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    made_by = f"storyloom_kernels.tune on {torch.cuda.get_device_name(device)}, {versions}"
    for layer in LAYERS:
        if layer.width in options.widths:
            entries = {}
            for key, found, time in tune(layer, device, partial(triton.testing.do_bench, return_mode="median")):
                entries[key] = found
                print(f"{key}: {found}, {time:.3f} ms", flush=True)
            # After each layer, so that a run that is cut short keeps what it found.
            write_entries(TABLE, entries, f"{made_by}; other architectures from resources at compile time")


if __name__ == "__main__":
    main()
