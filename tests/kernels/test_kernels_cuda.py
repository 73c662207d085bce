"""What only a GPU can show: captured graphs with changing masks and layouts, no waiting, bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from storyloom_kernels import (
    GroupLayout,
    cross_frame_attention,
    foreground,
    group_norm_silu,
    identity_cross_attention,
    reference,
    union,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda")
ROWS, HEADS, POSITIONS = 6, 4, 576


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Inside, an operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def draw(width: int, dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    shape = (ROWS, POSITIONS, HEADS, width)
    return [torch.randn(shape, device=DEVICE, dtype=dtype).transpose(1, 2) for _ in range(count)]


def step(q: Tensor, k: Tensor, v: Tensor, maps: Tensor, bounds: Tensor) -> Tensor:
    mask = union(foreground(maps, implementation="triton"))
    return cross_frame_attention(q, k, v, mask, bounds, implementation="triton")


@pytest.mark.parametrize("width", [40, 64, 80, 160])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_all_widths_and_dtypes_agree_with_the_definition(width: int, dtype: torch.dtype) -> None:
    layout = GroupLayout((3, 1, 2))
    q, k, v, d_out = draw(width, dtype, 4)
    mask = torch.rand(ROWS, POSITIONS, device=DEVICE) < 0.25
    gradients = {}
    for name in ("triton", "reference"):
        cast = torch.float32 if name == "reference" else dtype
        leaves = [x.to(cast).detach().requires_grad_() for x in (q, k, v)]
        out = cross_frame_attention(*leaves, mask, layout, implementation=name)  # type: ignore[arg-type]
        gradients[name] = [out, *torch.autograd.grad(out, leaves, d_out.to(cast))]
    tolerance = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for made, true in zip(gradients["triton"], gradients["reference"], strict=True):
        torch.testing.assert_close(made.float(), true, atol=tolerance, rtol=tolerance)


def identity_arguments(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    ends = torch.tensor([[8, 24]] * ROWS, device=DEVICE, dtype=torch.int32)
    scale, region = torch.rand(ROWS, 2, device=DEVICE), torch.rand(ROWS, 2, POSITIONS, device=DEVICE)
    marks = torch.rand(ROWS, 2, 77, device=DEVICE) < 0.1
    return q, k[:, :, :77], v[:, :, :77], k[:, :, 100:124], v[:, :, 100:124], ends, scale, region, marks


def test_no_op_waits_for_the_device() -> None:
    q, k, v, d_out = draw(64, torch.bfloat16, 4)
    maps, bounds = torch.rand(ROWS, 2, POSITIONS, device=DEVICE), GroupLayout((4, 2)).bounds(DEVICE)
    q.requires_grad_()
    given = identity_arguments(q, k, v)

    def all_ops() -> None:
        crossed = step(q, k, v, maps, bounds)
        identified, _ = identity_cross_attention(*given, implementation="triton")
        normal = group_norm_silu(crossed + identified, HEADS, implementation="triton")  # R rows of H channels
        torch.autograd.grad(normal, q, d_out)

    all_ops()  # compiles
    with waiting_is_an_error():
        all_ops()


def test_one_captured_graph_serves_other_masks_and_layouts() -> None:
    q, k, v = draw(64, torch.bfloat16)
    maps = torch.rand(ROWS, 2, POSITIONS, device=DEVICE)
    bounds = GroupLayout((6,)).bounds(DEVICE).clone()
    step(q, k, v, maps, bounds)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(q, k, v, maps, bounds)
    for frames in ((6,), (1, 2, 3), (2, 2, 2), (1,) * 6):
        maps.copy_(torch.rand_like(maps))
        bounds.copy_(GroupLayout(frames).bounds(DEVICE))
        graph.replay()
        mask = union(foreground(maps, implementation="reference"))
        expected = reference.cross_frame_attention(q.float(), k.float(), v.float(), mask, GroupLayout(frames))
        torch.testing.assert_close(captured.float(), expected, atol=3e-2, rtol=3e-2)
        assert torch.equal(captured, step(q, k, v, maps, bounds))


def test_it_compiles_whole() -> None:
    q, k, v = draw(64, torch.bfloat16)
    maps, bounds = torch.rand(ROWS, 2, POSITIONS, device=DEVICE), GroupLayout((4, 2)).bounds(DEVICE)
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(q, k, v, maps, bounds), step(q, k, v, maps, bounds))


def test_identity_attention_and_norms_in_bfloat16() -> None:
    q, k, v = draw(64, torch.bfloat16)
    given = identity_arguments(q, k, v)
    made = identity_cross_attention(*given, implementation="triton")
    true = reference.identity_cross_attention(*(x.float() if x.is_floating_point() else x for x in given))
    for one, other in zip(made, true, strict=True):
        torch.testing.assert_close(one.float(), other, atol=3e-2, rtol=3e-2)
    x = torch.randn(3, 64, 40, 40, device=DEVICE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        group_norm_silu(x, 32, implementation="triton").float(), reference.group_norm_silu(x.float(), 32, None, None),
        atol=3e-2, rtol=3e-2,
    )  # fmt: skip
