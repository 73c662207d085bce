"""PTX of the plugins' kernels, compiled by Triton for any architecture, also where there is no GPU.

``python -m storyloom_export.tensorrt.ptx 80 90`` compiles every kernel for these and prints what it takes.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storyloom_kernels.fused.foreground import COUNT_BLOCK, SCAN_BLOCK, foreground_blocks
from storyloom_kernels.fused.tiles import split_width

MOST_SHARED = 48 * 1024
"""Bytes of shared memory that every launch has."""


@dataclass(frozen=True)
class PluginKernel:
    """A kernel at one specialisation. ``types`` are Triton's, in the order of the arguments; scalars are int32."""

    op: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int


@dataclass(frozen=True)
class CompiledKernel:
    """What TensorRT wants to know. ``threads`` of a block; ``shared`` memory of one in bytes."""

    name: str
    ptx: str
    threads: int
    shared: int


def cross_frame(dtype: str, heads: int, width: int) -> PluginKernel:
    """K1 for heads of ``width``; ``dtype`` is "fp32", "fp16" or "bf16"."""
    from storyloom_export.tensorrt.kernels import cross_frame_plugin

    values = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}")
    types = values | dict.fromkeys(("index", "offsets", "bounds"), "*i32") | {"positions": "i32"}
    return PluginKernel("CrossFrameAttention", cross_frame_plugin, types, _attention(dtype, heads, width), 4, 2)


def cross_attention(dtype: str, heads: int, width: int) -> PluginKernel:
    """K2 without identities for heads of ``width``."""
    from storyloom_export.tensorrt.kernels import cross_attention_plugin

    types = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}") | {"token_mask": "*u8", "maps": "*fp32"}
    types |= dict.fromkeys(("positions", "tokens", "characters"), "i32")
    return PluginKernel("CrossAttentionWithMaps", cross_attention_plugin, types, _attention(dtype, heads, width), 4, 2)


def identity(dtype: str, heads: int, width: int) -> PluginKernel:
    """The identity streams of K2 for heads of ``width``."""
    from storyloom_export.tensorrt.kernels import identity_plugin

    types = dict.fromkeys(("attended", "q", "id_k", "id_v", "out"), f"*{dtype}")
    types |= dict.fromkeys(("ends", "owner", "source_of_row"), "*i32")
    types |= {"scale": "*fp32", "maps": "*fp32", "present": "*u8"}
    types |= dict.fromkeys(("positions", "tokens", "streams", "characters"), "i32")
    return PluginKernel("IdentityAttention", identity_plugin, types, _attention(dtype, heads, width), 4, 2)


def foreground(positions: int) -> PluginKernel:
    """K3's threshold for maps of up to ``positions``."""
    from storyloom_export.tensorrt.kernels import foreground_plugin

    block, warps = foreground_blocks(positions)
    types = {"maps": "*fp32", "positions": "i32", "mask": "*u8"}
    return PluginKernel("ForegroundOtsu", foreground_plugin, types, {"BLOCK": block}, warps, 2)


def bank() -> PluginKernel:
    """K3's prefix sum."""
    from storyloom_export.tensorrt.kernels import bank_plugin

    types = {"mask": "*u8", "positions": "i32", "index": "*i32", "offsets": "*i32"}
    return PluginKernel("Bank", bank_plugin, types, {"COUNT": COUNT_BLOCK, "SCAN": SCAN_BLOCK}, 8, 2)


def all_kernels() -> Iterator[PluginKernel]:
    """Every kernel at the shapes that the built-in model and the published ones launch."""
    for dtype in ("fp32", "fp16", "bf16"):
        for heads, width in ((2, 64), (8, 40), (10, 64), (8, 80), (8, 160)):
            yield cross_frame(dtype, heads, width)
            yield cross_attention(dtype, heads, width)
            yield identity(dtype, heads, width)
    yield foreground(4096)
    yield bank()


def compile_kernel(kernel: PluginKernel, architecture: int) -> CompiledKernel:
    """Compiles a kernel to PTX.

    Args:
        kernel: what to compile.
        architecture: 10 times the compute capability, such as 90.

    Raises:
        ValueError: the kernel wants scratch memory, or more shared memory than a launch has without asking for it,
            neither of which TensorRT gives a plugin.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.kernel.arg_names
    signature = {name: "constexpr" if name in kernel.constants else kernel.types[name] for name in names}
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    # TensorRT's tensors begin at multiples of 256 bytes.
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in names if signature[n].startswith("*")}
    compiled = triton.compile(
        ASTSource(fn=kernel.kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": kernel.warps, "num_stages": kernel.stages},
    )
    metadata = compiled.metadata
    if metadata.shared > MOST_SHARED:
        raise ValueError(f"{kernel.op} wants {metadata.shared} bytes of shared memory; a plugin has {MOST_SHARED}")
    arguments = sum(kind != "constexpr" for kind in signature.values())
    ptx = without_scratch(compiled.asm["ptx"], arguments)
    return CompiledKernel(metadata.name, ptx, kernel.warps * 32, metadata.shared)


def without_scratch(ptx: str, arguments: int) -> str:
    """Takes Triton's own parameters out of a kernel: pointers to scratch memory, which follow the arguments.

    Triton's launcher passes them always; TensorRT passes the arguments alone.

    Raises:
        ValueError: the kernel uses one of them.
    """
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise ValueError("the PTX has no kernel")
    parameters = entry[2].split(",")
    surplus = range(arguments, len(parameters))
    if any(re.search(rf"\b{entry[1]}_param_{number}\b", ptx[entry.end() :]) for number in surplus):
        raise ValueError(f"{entry[1]} uses scratch memory, which TensorRT does not give a plugin")
    return ptx[: entry.start(2)] + ",".join(parameters[:arguments]) + "\n" + ptx[entry.end(2) :]


def _attention(dtype: str, heads: int, width: int) -> dict[str, Any]:
    first, second = split_width(width)
    # Small enough for the shared memory that a launch has without asking, at the price of speed.
    row = (first + second) * (4 if dtype == "fp32" else 2)
    queries, keys = (64, 32) if row <= 160 else (64, 16)
    if dtype == "fp32" and row >= 320:
        queries = 32 if row < 640 else 16
    scale = width**-0.5 * math.log2(math.e)
    return {"H": heads, "D": width, "D0": first, "D1": second, "BM": queries, "BN": keys, "SCALE": scale}


def main() -> None:
    for architecture in map(int, sys.argv[1:]):
        for kernel in all_kernels():
            compiled = compile_kernel(kernel, architecture)
            shape = ", ".join(f"{name}={kernel.constants[name]}" for name in ("H", "D") if name in kernel.constants)
            target = re.search(r"\.target (sm_\d+)", compiled.ptx)
            print(
                f"{target[1] if target else '?'} {kernel.op:24} {kernel.types.get('q', ''):6} {shape:10} "
                f"{compiled.shared:6} bytes shared, {len(compiled.ptx) / 1024:6.0f} KiB of PTX"
            )


if __name__ == "__main__":
    main()
