"""The registered ops of K2, K3 and K4 fulfil torch.library's contracts and are what the functions call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from storyloom_kernels import foreground, group_norm_silu, identity_cross_attention, ops, reference
from storyloom_kernels.implementations import triton_obstacle
from tests.kernels.launchers import DEVICE

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    triton_obstacle(torch.zeros(1, device=DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)


def identity_arguments() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()

    ends = torch.tensor([[2, 5], [0, 3]], dtype=torch.int32, device=DEVICE)
    marks = torch.zeros(2, 2, 7, dtype=torch.bool, device=DEVICE)
    marks[:, 0, 1:3], marks[:, 1, 4] = True, True
    texts = [draw(2, 1, length, 16) for length in (20, 7, 7, 5, 5)]
    region = torch.rand(2, 2, 20, generator=generator).to(DEVICE).requires_grad_()
    return [*texts, ends, draw(2, 2), region, marks]


def test_identity_cross_attention() -> None:
    torch.library.opcheck(ops.identity_cross_attention, tuple(identity_arguments()))


def test_foreground() -> None:
    maps = torch.rand(2, 2, 30, device=DEVICE)
    torch.library.opcheck(ops.foreground, (maps, "otsu", None))
    assert torch.equal(foreground(maps, implementation="triton"), foreground(maps, implementation="reference"))


def test_group_norm_silu() -> None:
    x = torch.randn(2, 8, 4, 4, device=DEVICE, requires_grad=True)
    weight, bias = (torch.randn(8, device=DEVICE, requires_grad=True) for _ in range(2))
    torch.library.opcheck(ops.group_norm_silu, (x, 4, weight, bias, 1e-5, True))


def test_all_gradients_reach_the_callers_tensors() -> None:
    gradients = {}
    for name in ("triton", "reference", "sdpa"):
        given = identity_arguments()
        out, maps = identity_cross_attention(*given, implementation=name)  # type: ignore[arg-type,misc]
        (out.square().sum() + maps.square().sum()).backward()
        gradients[name] = [x.grad for x in given if x.is_floating_point()]
    for name in ("triton", "sdpa"):
        for made, true in zip(gradients[name], gradients["reference"], strict=True):
            torch.testing.assert_close(made, true, atol=5e-5, rtol=5e-5)


def test_a_norm_without_weights_has_its_gradient() -> None:
    x = torch.randn(2, 8, 5, device=DEVICE, requires_grad=True)
    (made,) = torch.autograd.grad(group_norm_silu(x, 4, implementation="triton").square().sum(), x)
    (true,) = torch.autograd.grad(reference.group_norm_silu(x, 4, None, None).square().sum(), x)
    torch.testing.assert_close(made, true, atol=1e-5, rtol=1e-5)


def test_the_functions_compile_whole() -> None:
    x = torch.randn(2, 8, 4, 4, device=DEVICE)

    def layer(x: Tensor) -> Tensor:
        return 2 * group_norm_silu(x, 4, implementation="triton")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
