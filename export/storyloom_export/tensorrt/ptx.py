"""PTX of the plugins' kernels, compiled by Triton for any architecture, also where there is no GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from storyloom_kernels.fused.foreground import COUNT_BLOCK, SCAN_BLOCK, foreground_blocks
from storyloom_kernels.fused.tiles import split_width
from storyloom_kernels.tuning import tiles


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
    constants: Mapping[str, Any] = field(default_factory=dict)


def cross_frame(architecture: int, dtype: str, heads: int, width: int, positions: int) -> PluginKernel:
    """K1 for heads of ``width``, in layers of about ``positions``; ``dtype`` is "fp32", "fp16" or "bf16"."""
    from storyloom_export.tensorrt.kernels import cross_frame_plugin

    chosen = tiles("cross_frame_forward", architecture, width, positions)
    values = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}")
    types = values | dict.fromkeys(("index", "offsets", "bounds"), "*i32") | {"positions": "i32"}
    constants = _attention(heads, width, chosen.queries, chosen.keys)
    return PluginKernel("CrossFrameAttention", cross_frame_plugin, types, constants, chosen.warps, chosen.stages)


def cross_attention(architecture: int, dtype: str, heads: int, width: int) -> PluginKernel:
    """K2 without identities for heads of ``width``."""
    from storyloom_export.tensorrt.kernels import cross_attention_plugin

    chosen = tiles("cross_frame_forward", architecture, width, 1)
    types = dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}") | {"token_mask": "*u8", "maps": "*fp32"}
    types |= dict.fromkeys(("positions", "tokens", "characters"), "i32")
    # 32 tokens of a step: the text has 77, and the maps of a program live in registers beside the keys.
    constants = _attention(heads, width, min(chosen.queries, 64), 32)
    return PluginKernel("CrossAttentionWithMaps", cross_attention_plugin, types, constants, 4, 2)


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


def all_kernels(architecture: int) -> Iterator[PluginKernel]:
    """Every kernel at the shapes that the built-in model and the published ones launch."""
    for dtype in ("fp32", "fp16", "bf16"):
        for heads, width in ((2, 64), (8, 40), (10, 64), (8, 80), (8, 160)):
            yield cross_frame(architecture, dtype, heads, width, 4096)
            yield cross_attention(architecture, dtype, heads, width)
    yield foreground(4096)
    yield bank()


def compile_kernel(kernel: PluginKernel, architecture: int) -> CompiledKernel:
    """Compiles a kernel to PTX.

    Args:
        kernel: what to compile.
        architecture: 10 times the compute capability, such as 90.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.kernel.arg_names
    signature = {name: "constexpr" if name in kernel.constants else kernel.types[name] for name in names}
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    # TensorRT's tensors begin at multiples of 256 bytes.
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]] for name in names if signature[name].startswith("*")
    }  # fmt: skip
    compiled = triton.compile(
        ASTSource(fn=kernel.kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": kernel.warps, "num_stages": kernel.stages},
    )
    metadata = compiled.metadata
    return CompiledKernel(metadata.name, compiled.asm["ptx"], kernel.warps * 32, metadata.shared, dict(kernel.constants))


def _attention(heads: int, width: int, queries: int, keys: int) -> dict[str, Any]:
    first, second = split_width(width)
    scale = width**-0.5 * math.log2(math.e)
    return {"H": heads, "D": width, "D0": first, "D1": second, "BM": queries, "BN": keys, "SCALE": scale}
