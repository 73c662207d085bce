"""Kernels against the best that other libraries do, in the same run: `make gpu` calls it after the tests.

K1 counts everything from the map to the output: threshold, bank or mask, attention. Writes kernels.json with every
sample and kernels.md, whose tables it prints.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels.report import write_report
from benchmarks.kernels.shapes import FRAMES, LAYERS, SMOKE_LAYERS, Layer, self_attention, useful_flops
from benchmarks.kernels.timing import measure
from storyloom_kernels import (
    GroupLayout,
    Implementation,
    cross_frame_attention,
    foreground,
    group_norm_silu,
    identity_cross_attention,
    union,
)
from storyloom_kernels.implementations import triton_obstacle

Record = dict[str, Any]


def _attempt(name: str, call: Callable[[], Any], device: torch.device, repeats: int) -> Record:
    try:
        timing = measure(call, device, repeats)
    except Exception as error:  # noqa: BLE001 - a baseline that cannot run is a finding, and says why
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return {"name": name, "error": f"{type(error).__name__}: {error}"[:300]}
    return {"name": name, **asdict(timing)}


def _varlen(q: Tensor, k: Tensor, v: Tensor, maps: Tensor, layout: GroupLayout) -> Tensor:
    """Flash attention of variable lengths on materialised keys; torch.nn.attention.varlen."""
    from torch.nn.attention.varlen import varlen_attn

    mask = union(foreground(maps, "fixed", 0.75))
    rows, heads, positions, width = q.shape
    keys, lengths = [], [0]
    for piece in layout.slices():
        for row in range(piece.start, piece.stop):
            seen = mask[piece].clone()
            seen[row - piece.start] = True
            keys.append(seen.flatten().nonzero()[:, 0] + piece.start * positions)
            lengths.append(lengths[-1] + len(keys[-1]))
    chosen = torch.cat(keys)
    flat = [x.transpose(1, 2).reshape(rows * positions, heads, width) for x in (q, k, v)]
    ends_q = torch.arange(rows + 1, device=q.device, dtype=torch.int32) * positions
    ends_k = torch.tensor(lengths, device=q.device, dtype=torch.int32)
    longest = max(b - a for a, b in pairwise(lengths))
    out: Any = varlen_attn(flat[0], flat[1][chosen], flat[2][chosen], ends_q, ends_k, positions, longest)
    return cast(Tensor, out)


def _cross_frame(implementation: Implementation, q: Tensor, k: Tensor, v: Tensor, maps: Tensor, layout: Any) -> Tensor:
    rule: Implementation = "triton" if implementation == "triton" else "reference"
    mask = union(foreground(maps, "fixed", 0.75, implementation=rule))
    return cross_frame_attention(q, k, v, mask, layout, implementation=implementation)


def _training(forward: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> None:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    forward(*leaves, *rest).sum().backward()  # type: ignore[no-untyped-call]


def cross_frame(
    layers: tuple[Layer, ...], frames: tuple[int, ...], device: torch.device, repeats: int
) -> Iterator[Record]:
    """K1 forward, and forward with backward, for each layer and number of frames."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for layer in layers:
        for count in frames:
            layout = GroupLayout((count,))
            q, k, v, maps = self_attention(layer, count, device, dtype)
            flops = useful_flops(layer, union(foreground(maps, "fixed", 0.75)), layout)
            names: tuple[Implementation, ...] = ("triton", "sdpa", "flex", "xformers")
            calls: dict[str, Callable[..., Tensor]] = {name: partial(_cross_frame, name) for name in names}
            calls["varlen"] = _varlen
            for mode in ("forward", "forward+backward"):
                results = []
                for name, forward in calls.items():
                    run = forward if mode == "forward" else partial(_training, forward)
                    record = _attempt(name, partial(run, q, k, v, maps, layout), device, repeats)
                    if "milliseconds" in record:
                        done = flops * (1 if mode == "forward" else 3.5)
                        record["tflops"] = done / record["milliseconds"] / 1e9
                    results.append(record)
                yield {"op": "K1", "mode": mode, "layer": asdict(layer), "frames": count, "results": results}


def identity(layers: tuple[Layer, ...], rows: int, device: torch.device, repeats: int) -> Iterator[Record]:
    """K2 with two identity streams of 16 tokens and the maps of two characters."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for layer in layers:
        generator = torch.Generator(device).manual_seed(0)

        def draw(length: int, layer: Layer = layer, generator: torch.Generator = generator) -> Tensor:
            shape = (rows, length, layer.heads, layer.width)
            return torch.randn(shape, generator=generator, device=device, dtype=dtype).transpose(1, 2)

        ends = torch.tensor([[16, 32]] * rows, dtype=torch.int32, device=device)
        scale = torch.ones(rows, 2, device=device)
        region = torch.rand(rows, 2, layer.positions, generator=generator, device=device)
        marks = torch.zeros(rows, 2, 77, dtype=torch.bool, device=device)
        marks[:, 0, 2:9], marks[:, 1, 12:20] = True, True
        given = (draw(layer.positions), draw(77), draw(77), draw(32), draw(32), ends, scale, region, marks)
        names: tuple[Implementation, ...] = ("triton", "sdpa")
        results = [
            _attempt(name, partial(identity_cross_attention, *given, implementation=name), device, repeats)
            for name in names
        ]
        moved = 2 * given[0].numel() * given[0].element_size() + sum(x.numel() * x.element_size() for x in given[1:])
        moved += rows * 2 * layer.positions * 4
        yield {"op": "K2", "layer": asdict(layer), "rows": rows, "bytes": moved, "results": results}


def norms(device: torch.device, repeats: int, *, smoke: bool) -> Iterator[Record]:
    """K4 at the shapes of a VAE decoder and a UNet."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = (
        [(1, 32, 8, 8)] if smoke else [(1, 128, 1024, 1024), (1, 256, 512, 512), (8, 320, 128, 128), (8, 1280, 32, 32)]
    )
    for shape in shapes:
        x = torch.randn(shape, device=device, dtype=dtype)
        weight, bias = (
            torch.ones(shape[1], device=device, dtype=dtype),
            torch.zeros(shape[1], device=device, dtype=dtype),
        )

        def plain(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return F.silu(F.group_norm(x, 32, weight, bias))

        fused = partial(group_norm_silu, x, 32, weight, bias, implementation="triton")
        results = [_attempt("triton", fused, device, repeats), _attempt("torch", plain, device, repeats)]
        yield {"op": "K4", "shape": list(shape), "bytes": 2 * x.numel() * x.element_size(), "results": results}


def bandwidth(device: torch.device, repeats: int, *, smoke: bool) -> float:
    """Bytes a second of a copy: the memory floor that K2 and K4 are held against."""
    x = torch.empty(2**12 if smoke else 2**30, dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    return 2 * x.numel() / measure(lambda: y.copy_(x), device, repeats).milliseconds * 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.kernels.run", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the results; default benchmarks/results/<device>")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: whether it runs, not how fast")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if obstacle := triton_obstacle(torch.zeros(1, device=device)):
        sys.exit(f"the kernels cannot run here: {obstacle}")
    layers, frames = (SMOKE_LAYERS, (2,)) if options.smoke else (LAYERS, FRAMES)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    out: Path = options.out or Path("benchmarks/results") / name.lower().replace(" ", "-")
    records = [
        *cross_frame(layers, frames, device, options.repeats),
        *identity(layers, 8 if not options.smoke else 2, device, options.repeats),
        *norms(device, options.repeats, smoke=options.smoke),
    ]
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": __import__("triton").__version__,
    }
    result = {
        "command": " ".join(["python -m benchmarks.kernels.run", *sys.argv[1:]]),
        "hardware": name,
        "versions": versions,
        "copy_bytes_per_second": bandwidth(device, options.repeats, smoke=options.smoke),
        "records": records,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")
    print(write_report(result, out))


if __name__ == "__main__":
    main()
