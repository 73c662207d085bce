"""Our ops as TensorRT's quickly deployable plugins, with kernels compiled ahead of time.

``register`` tells TensorRT their shapes and how to launch them; afterwards the ONNX parser takes them in place of the
functions' bodies, and the engine holds their PTX. Attributes are not kept in an engine, so that all that a kernel
depends on besides sizes is compiled into it.
"""

# mypy: disable-error-code="no-untyped-def"
# TensorRT reads the annotations, which are classes of a package that only exists where it is installed.

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from storyloom_export.tensorrt import ptx
from storyloom_export.tensorrt.ptx import CompiledKernel, compile_kernel

NAMESPACE = "storyloom"
"""TensorRT takes no dot in a namespace; ``engine`` gives the nodes of ai.storyloom this one."""


@cache
def register(architecture: int, max_positions: int) -> list[str]:
    """Registers every plugin, once per process.

    Args:
        architecture: that the kernels are compiled for: 10 times the compute capability.
        max_positions: of the largest layer that maps are thresholded in.

    Returns:
        The plugins' ids.

    Raises:
        ImportError: TensorRT is not installed, or too old for plugins compiled ahead of time (before 10.7).
    """
    trt, trtp = importlib.import_module("tensorrt"), importlib.import_module("tensorrt.plugin")
    made = [
        _cross_frame(trt, trtp, architecture),
        _cross_attention(trt, trtp, architecture),
        _identity(trt, trtp, architecture),
        _foreground(trt, trtp, architecture, max_positions),
        _bank(trt, trtp, architecture),
    ]
    return made


def _cross_frame(trt: Any, trtp: Any, architecture: int) -> str:
    desc, name = trtp.TensorDesc, f"{NAMESPACE}::CrossFrameAttention"

    def shapes(q, k, v, index, offsets, bounds):
        return q.like()

    def launch(q, k, v, index, offsets, bounds, outputs, tactic):
        rows, positions, heads, width = q.shape_expr
        kernel = ptx.cross_frame(_type(trt, q.dtype), heads.constant_value(), width.constant_value())
        compiled = compile_kernel(kernel, architecture)
        tiles = trtp.cdiv(positions, kernel.constants["BM"])
        return _launch(trtp, compiled, (tiles, heads, rows), (positions,))

    inputs = dict.fromkeys(("q", "k", "v", "index", "offsets", "bounds"), desc)
    return _register(trtp, name, shapes, launch, inputs, desc)


def _cross_attention(trt: Any, trtp: Any, architecture: int) -> str:
    desc, name = trtp.TensorDesc, f"{NAMESPACE}::CrossAttentionWithMaps"

    def shapes(q, k, v, token_mask):
        rows, positions, heads, _ = q.shape_expr
        maps = trtp.from_shape_expr((rows, heads, token_mask.shape_expr[1], positions), trt.float32)
        return q.like(), maps

    def launch(q, k, v, token_mask, outputs, tactic):
        rows, positions, heads, width = q.shape_expr
        kernel = ptx.cross_attention(_type(trt, q.dtype), heads.constant_value(), width.constant_value())
        compiled = compile_kernel(kernel, architecture)
        tiles = trtp.cdiv(positions, kernel.constants["BM"])
        _, characters, tokens = token_mask.shape_expr
        return _launch(trtp, compiled, (tiles, heads, rows), (positions, tokens, characters))

    inputs = dict.fromkeys(("q", "k", "v", "token_mask"), desc)
    return _register(trtp, name, shapes, launch, inputs, _pair(desc))


def _identity(trt: Any, trtp: Any, architecture: int) -> str:
    desc, name = trtp.TensorDesc, f"{NAMESPACE}::IdentityAttention"

    def shapes(attended, q, id_k, id_v, ends, scale, owner, maps, present, source_of_row):
        return attended.like()

    def launch(attended, q, id_k, id_v, ends, scale, owner, maps, present, source_of_row, outputs, tactic):
        rows, positions, heads, width = q.shape_expr
        kernel = ptx.identity(_type(trt, q.dtype), heads.constant_value(), width.constant_value())
        compiled = compile_kernel(kernel, architecture)
        tiles = trtp.cdiv(positions, kernel.constants["BM"])
        sizes = (positions, id_k.shape_expr[1], ends.shape_expr[1], maps.shape_expr[1])
        return _launch(trtp, compiled, (tiles, heads, rows), sizes)

    names = ("attended", "q", "id_k", "id_v", "ends", "scale", "owner", "maps", "present", "source_of_row")
    return _register(trtp, name, shapes, launch, dict.fromkeys(names, desc), desc)


def _foreground(trt: Any, trtp: Any, architecture: int, max_positions: int) -> str:
    desc, name = trtp.TensorDesc, f"{NAMESPACE}::ForegroundOtsu"

    def shapes(maps):
        return trtp.from_shape_expr(tuple(maps.shape_expr), trt.bool)

    def launch(maps, outputs, tactic):
        sources, characters, positions = maps.shape_expr
        compiled = compile_kernel(ptx.foreground(max_positions), architecture)
        return _launch(trtp, compiled, (sources * characters,), (positions,))

    return _register(trtp, name, shapes, launch, {"maps": desc}, desc)


def _bank(trt: Any, trtp: Any, architecture: int) -> str:
    desc, name = trtp.TensorDesc, f"{NAMESPACE}::Bank"

    def shapes(mask):
        rows, positions = mask.shape_expr
        index = trtp.from_shape_expr((rows * positions,), trt.int32)
        return index, trtp.from_shape_expr((rows + 1,), trt.int32)

    def launch(mask, outputs, tactic):
        rows, positions = mask.shape_expr
        return _launch(trtp, compile_kernel(ptx.bank(), architecture), (rows,), (positions,))

    return _register(trtp, name, shapes, launch, {"mask": desc}, _pair(desc))


def _register(trtp: Any, name: str, shapes: Any, launch: Any, inputs: dict[str, Any], returns: Any) -> str:
    # Annotations are how TensorRT learns what is a tensor.
    shapes.__annotations__ = inputs | {"return": returns}
    outputs = returns if returns is not trtp.TensorDesc else tuple[trtp.TensorDesc]
    launch.__annotations__ = inputs | {
        "outputs": outputs,
        "tactic": int,
        "return": tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs],
    }
    trtp.register(name)(shapes)
    trtp.aot_impl(name)(launch)
    return name


def _pair(kind: Any) -> Any:
    return tuple.__class_getitem__((kind, kind))


def _launch(trtp: Any, kernel: CompiledKernel, grid: tuple[Any, ...], scalars: tuple[Any, ...]) -> tuple[Any, ...]:
    parameters = trtp.KernelLaunchParams()
    for axis, size in zip("xyz", grid, strict=False):
        setattr(parameters, f"grid_{axis}", size)
    parameters.block_x = kernel.threads
    parameters.shared_mem = kernel.shared
    extra = trtp.SymIntExprs(len(scalars))
    for number, value in enumerate(scalars):
        extra[number] = trtp.SymInt32(value)
    return kernel.name, kernel.ptx, parameters, extra


def _type(trt: Any, dtype: Any) -> str:
    return {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16"}[dtype]
