"""`python -m storyloom_kernels.tune`: makes the entries of `tuning.json` for the GPU at hand.

Times every candidate tile of K1 at each head dimension and size class and keeps the fastest. Run once for a GPU, then
commit the file: serving looks tiles up and never times anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from storyloom_kernels.fused import cross_frame
from storyloom_kernels.fused.foreground import union_bank
from storyloom_kernels.layout import GroupLayout
from storyloom_kernels.tuning import Tiles, architecture, size_class

TABLE = Path(__file__).with_name("tuning.json")
LAYERS = ((40, 4096, 8), (40, 1024, 8), (64, 4096, 10), (64, 1024, 20), (80, 2304, 8), (80, 1024, 8), (160, 2304, 8),
          (160, 576, 8))  # fmt: skip
"""(d, N, H): one layer of each size class for each head dimension."""
FRAMES = 8


def candidates() -> Iterator[Tiles]:
    for queries, keys, warps, stages in product((16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3)):
        if queries * keys <= 128 * 128:
            yield Tiles(queries, keys, warps, stages)


def _milliseconds(call: Callable[[], Any], repeats: int = 8) -> float:
    for _ in range(2):
        call()
    event: Any = torch.cuda.Event
    events = [[event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(begin.elapsed_time(end) for begin, end in events))


def tune_layer(width: int, positions: int, heads: int, device: torch.device) -> dict[str, tuple[Tiles, float]]:
    """The fastest tiles of the forward and of both halves of the backward for one layer, with their milliseconds."""
    layout = GroupLayout((FRAMES,))
    shape = (FRAMES, positions, heads, width)
    q, k, v, d_out = (torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
    index, offsets = union_bank(torch.rand(FRAMES, positions, device=device) < 0.25)
    bounds = layout.bounds(device)
    best: dict[str, tuple[Tiles, float]] = {}
    # The two halves of the backward are tuned one at a time, beside the same tiles of the other.
    plain = Tiles(32, 16, 4, 1)
    out, lse = cross_frame.forward(q, k, v, index, offsets, bounds, plain)
    for tiles in candidates():
        calls: dict[str, Callable[[], Any]] = {
            "cross_frame_forward": partial(cross_frame.forward, q, k, v, index, offsets, bounds, tiles),
            "cross_frame_query_gradient": partial(
                cross_frame.backward, d_out, q, k, v, out, lse, index, offsets, bounds, tiles, plain
            ),
            "cross_frame_key_gradient": partial(
                cross_frame.backward, d_out, q, k, v, out, lse, index, offsets, bounds, plain, tiles
            ),
        }
        for name, call in calls.items():
            try:
                time = _milliseconds(call)
            except Exception as error:  # noqa: BLE001 - tiles that do not fit this GPU are no candidates for it
                print(f"  {name} {tiles}: {type(error).__name__}")
                continue
            if name not in best or time < best[name][1]:
                best[name] = (tiles, time)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="storyloom_kernels.tune", description=__doc__)
    parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "tuning times kernels on a GPU, and there is none\n")
    device = torch.device("cuda")
    table = json.loads(TABLE.read_text())
    for width, positions, heads in LAYERS:
        for name, (tiles, time) in tune_layer(width, positions, heads, device).items():
            key = f"{name}/{architecture(device)}/{width}/{size_class(positions)}"
            table["tiles"][key] = [tiles.queries, tiles.keys, tiles.warps, tiles.stages]
            print(f"{key}: {tiles}, {time:.3f} ms")
    made = f"storyloom_kernels.tune on {torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    table["made_by"] = f"{made}; other architectures from resources at compile time"
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
