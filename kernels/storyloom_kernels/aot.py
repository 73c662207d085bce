"""`python -m storyloom_kernels.aot`: compiles every kernel for every architecture ahead of time; needs no GPU.

Prints registers, stack, shared memory and tensor-core instructions, and fails on a spill, on more shared memory than
the architecture has, on a dot that became no tensor-core instruction, and on more registers than `aot_budgets.json`
allows (`--update-budgets` records what is).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storyloom_kernels.fused.variants import Variant

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program can have."""
BUDGETS = Path(__file__).with_name("aot_budgets.json")
_TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|mma\.sync|tcgen05\.mma)")
_PLAIN_DOT = re.compile(r"tt\.dot\b.*->.*#blocked")


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers per thread, bytes of stack (spills), bytes of shared memory."""

    variant: str
    architecture: int
    registers: int
    stack: int
    shared: int
    tensor_core: int
    plain_dots: int

    @property
    def key(self) -> str:
        return f"{self.variant}/{self.architecture}"

    def complaints(self, budget: int | None) -> Iterator[str]:
        if self.stack:
            yield f"{self.stack} bytes of stack: it spills"
        if self.shared > SHARED_LIMIT[self.architecture] * 1024:
            yield f"{self.shared} bytes of shared memory; there are {SHARED_LIMIT[self.architecture]} KiB"
        if self.plain_dots:
            yield f"{self.plain_dots} dots without tensor cores"
        if budget is None:
            yield "no recorded budget; run with --update-budgets"
        elif self.registers > budget:
            yield f"{self.registers} registers; the budget is {budget}"


def variants(architecture: int) -> Iterator[Variant]:
    """Every kernel at every shape class that serving and training launch on an architecture."""
    from storyloom_kernels.fused import (
        cross_frame,
        foreground,
        group_norm,
        group_norm_backward,
        identity,
        identity_backward,
    )

    for module in (cross_frame, identity, identity_backward, foreground, group_norm, group_norm_backward):
        yield from module.variants(architecture)


def compile_variant(variant: Variant, architecture: int) -> Resources:
    """Compiles one variant with the compiler and assembler of the Triton package."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else variant.types.get(name, "i32") for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    pointers = [name for name in names if signature[name].startswith("*")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *variant.aligned)}
    compiled = triton.compile(
        ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": variant.warps, "num_stages": variant.stages},
    )
    usage = _resource_usage(compiled.asm["cubin"])
    return Resources(
        variant=variant.name,
        architecture=architecture,
        registers=usage["REG"],
        stack=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        tensor_core=len(_TENSOR_CORE.findall(compiled.asm["ptx"])),
        plain_dots=len(_PLAIN_DOT.findall(compiled.asm["ttgir"])),
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text))
    return {name: int(found[name]) for name in ("REG", "STACK", "LOCAL")}


def _compile_by_number(number: int, architecture: int) -> Resources:
    return compile_variant(list(variants(architecture))[number], architecture)


def measure(architectures: tuple[int, ...]) -> list[Resources]:
    """Compiles everything, one process per core."""
    jobs = [(n, arch) for arch in architectures for n in range(len(list(variants(arch))))]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_compile_by_number, *zip(*jobs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="storyloom_kernels.aot", description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--update-budgets", action="store_true", help="record the registers as the new budgets")
    options = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        parser.exit(2, "TRITON_INTERPRET is set: Triton would interpret the kernels instead of compiling them\n")
    budgets: dict[str, int] = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    results = measure(tuple(options.architectures))
    if options.update_budgets:
        budgets |= {resources.key: resources.registers for resources in results}
        BUDGETS.write_text(json.dumps(dict(sorted(budgets.items())), indent=1) + "\n")
    failures = 0
    print(f"{'kernel':44} {'sm':>4} {'regs':>5} {'stack':>6} {'shared':>7} {'mma':>4}")
    for resources in results:
        complaints = list(resources.complaints(budgets.get(resources.key)))
        failures += bool(complaints)
        print(
            f"{resources.variant:44} {resources.architecture:4} {resources.registers:5} {resources.stack:6} "
            f"{resources.shared:7} {resources.tensor_core:4} {'; '.join(complaints)}"
        )
    print(f"{len(results)} kernels compiled, {failures} not as they should be")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
