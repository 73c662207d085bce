"""K4: the definition against float64, and Triton against the definition; gradients, batches, orders in memory."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import reference
from tests.kernels.launchers import DEVICE, launchers
from tests.kernels.poison import poisoned_memory

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
ORDERS = ("contiguous", "channels last", "positions transposed")

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(2, 8, 5, 7), (1, 40, 6, 6), (3, 6, 1, 1), (2, 4, 40, 1), (2, 12, 19)])
# Channels and positions of a tile, positions of a program; None is the choice of the launcher.
tilings = st.sampled_from([None, (2, 16, 16), (4, 16, 32)])


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    return launchers("group_norm")


@pytest.fixture(scope="module")
def backward() -> Any:
    return launchers("group_norm_backward").group_norm_silu_backward


def draw(seed: int, shape: tuple[int, ...], order: str = "contiguous", dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    if order == "channels last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if order == "positions transposed" else x


def parameters(seed: int, channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return draw(seed + 1, (channels,), dtype=dtype), draw(seed + 2, (channels,), dtype=dtype)


def tile(patch: pytest.MonkeyPatch, fused: ModuleType, tiling: tuple[int, int, int] | None) -> None:
    if tiling:
        patch.setattr(fused, "choose_tiling", lambda *_, **__: fused.Tiling(*tiling, warps=4))


@settings(max_examples=10, deadline=None)
@given(
    seeds, shapes, st.sampled_from(ORDERS), st.sampled_from([1, 2]), st.booleans(), st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), tilings,
)  # fmt: skip
@example(0, (1, 4, 50, 50), "contiguous", 2, True, True, torch.float32, None)
def test_triton_is_the_definition(
    fused: ModuleType, seed: int, shape: tuple[int, ...], order: str, groups: int, affine: bool, silu: bool,
    dtype: torch.dtype, tiling: tuple[int, int, int] | None,
) -> None:  # fmt: skip
    x = draw(seed, shape, order, dtype)
    weight, bias = parameters(seed, shape[1], dtype) if affine else (None, None)
    with pytest.MonkeyPatch.context() as patch, poisoned_memory():
        tile(patch, fused, tiling)
        out, mean, rstd = fused.group_norm_silu(x, groups, weight, bias, 1e-5, silu)
    assert out.dtype == dtype
    assert out.stride() == torch.empty_like(x).stride()
    expected = reference.group_norm_silu(x, groups, weight, bias, 1e-5, silu)
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    members = x.double().reshape(shape[0], groups, -1)
    torch.testing.assert_close(mean.double(), members.mean(-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rstd.double(), (members.var(-1, correction=0) + 1e-5).rsqrt(), atol=1e-5, rtol=1e-5)


@settings(max_examples=6, deadline=None)
@given(
    seeds, shapes, st.sampled_from(ORDERS), st.sampled_from(ORDERS), st.sampled_from([1, 2]), st.booleans(),
    st.booleans(), tilings,
)  # fmt: skip
def test_gradients_are_those_of_the_definition(
    fused: ModuleType, backward: Any, seed: int, shape: tuple[int, ...], order: str, order_of_gradient: str,
    groups: int, affine: bool, silu: bool, tiling: tuple[int, int, int] | None,
) -> None:  # fmt: skip
    x, dy = draw(seed, shape, order), draw(seed + 3, shape, order_of_gradient)
    weight, bias = parameters(seed, shape[1]) if affine else (None, None)
    with pytest.MonkeyPatch.context() as patch, poisoned_memory():
        tile(patch, fused, tiling)
        _, mean, rstd = fused.group_norm_silu(x, groups, weight, bias, 1e-5, silu)
        found = backward(dy, x, mean, rstd, groups, weight, bias, silu)
    assert found[0].stride() == torch.empty_like(x).stride()
    leaves = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    out = reference.group_norm_silu(leaves[0], groups, leaves[1], leaves[2], 1e-5, silu)  # type: ignore[arg-type]
    expected = torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], dy.double())
    for one, other in zip([gradient for gradient in found if gradient is not None], expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_keep_its_dtype(fused: ModuleType, backward: Any, dtype: torch.dtype) -> None:
    shape = (2, 8, 6, 5)
    x, dy, (weight, bias) = draw(0, shape, dtype=dtype), draw(3, shape, dtype=dtype), parameters(0, 8)
    _, mean, rstd = fused.group_norm_silu(x, 4, weight, bias)
    found = backward(dy, x, mean, rstd, 4, weight, bias)
    assert [gradient.dtype for gradient in found] == [dtype, torch.float32, torch.float32]
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    out = reference.group_norm_silu(leaves[0], 4, leaves[1], leaves[2])
    expected = torch.autograd.grad(out, leaves, dy.double())
    for one, other, tolerance in zip(found, expected, (TOLERANCE[dtype], 2e-5, 2e-5), strict=True):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("order", ["contiguous", "channels last"])
def test_a_large_mean_costs_no_accuracy(fused: ModuleType, order: str) -> None:
    x = (draw(0, (1, 8, 48, 48)) + 1000).contiguous(
        memory_format=torch.channels_last if order == "channels last" else torch.contiguous_format
    )
    expected = F.group_norm(x.double().contiguous(), 2)
    # The mean itself, in float32, is 3e-5 off.
    for out in (fused.group_norm_silu(x, 2, None, None, silu=False)[0], reference.group_norm_silu(
        x, 2, None, None, silu=False
    )):  # fmt: skip
        torch.testing.assert_close(out.double(), expected, atol=2e-4, rtol=0)


@settings(max_examples=4, deadline=None)
@given(seeds, st.sampled_from(["contiguous", "channels last"]), tilings)
@example(0, "contiguous", None)
def test_a_row_has_the_same_bits_in_any_batch(
    fused: ModuleType, backward: Any, seed: int, order: str, tiling: tuple[int, int, int] | None
) -> None:
    x, dy = draw(seed, (3, 8, 4, 5), order), draw(seed + 3, (3, 8, 4, 5), order)
    weight, bias = parameters(seed, 8)
    with pytest.MonkeyPatch.context() as patch:
        tile(patch, fused, tiling)
        results = []
        for rows in (slice(0, 3), slice(1, 2)):
            out, mean, rstd = fused.group_norm_silu(x[rows], 2, weight, bias)
            dx, _, _ = backward(dy[rows], x[rows], mean, rstd, 2, weight, bias)
            results.append((out, mean, rstd, dx))
    for together, alone in zip(*results, strict=True):
        assert torch.equal(together[1:2], alone)


def test_a_batch_of_nothing(fused: ModuleType, backward: Any) -> None:
    x, (weight, bias) = torch.zeros(0, 8, 3, 3, device=DEVICE), parameters(0, 8)
    out, mean, rstd = fused.group_norm_silu(x, 2, weight, bias)
    assert out.shape == x.shape
    assert mean.shape == rstd.shape == (0, 2)
    dx, d_weight, d_bias = backward(out, x, mean, rstd, 2, weight, bias)
    assert dx.shape == x.shape
    assert not d_weight.any()
    assert not d_bias.any()


def test_groups_that_do_not_fit_are_refused(fused: ModuleType) -> None:
    with pytest.raises(ValueError, match="groups"):
        fused.group_norm_silu(torch.zeros(1, 8, 3, device=DEVICE), 3, None, None)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("channels", "positions"), [(320, 4096), (1280, 64), (128, 1 << 20), (4, 9), (2560, 576)])
def test_a_tiling_covers_the_row_in_few_chunks(
    fused: ModuleType, channels: int, positions: int, channels_last: bool
) -> None:
    tiling = fused.choose_tiling(channels, positions, channels_last)
    assert tiling.chunk % tiling.positions == 0
    assert tiling.channels * tiling.positions <= 2048
    assert -(-positions // tiling.chunk) <= 1024


def test_the_definition_normalises_each_group() -> None:
    x, (weight, bias) = draw(0, (2, 6, 5)).double(), parameters(0, 6)
    members = x.reshape(2, 3, -1)
    normal = (members - members.mean(-1, keepdim=True)) / (members.var(-1, correction=0, keepdim=True) + 0.1).sqrt()
    y = normal.reshape(x.shape) * weight[:, None].double() + bias[:, None].double()
    torch.testing.assert_close(reference.group_norm_silu(x, 3, weight, bias, 0.1), y * y.sigmoid())
    torch.testing.assert_close(reference.group_norm_silu(x, 3, weight, bias, 0.1, silu=False), y)


@pytest.mark.parametrize("silu", [True, False])
def test_the_definition_has_right_gradients(silu: bool) -> None:
    leaves = [t.double().requires_grad_() for t in (draw(0, (2, 4, 3)), *parameters(0, 4))]
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: reference.group_norm_silu(x, 2, weight, bias, silu=silu), leaves
    )


def test_the_definition_keeps_dtype_and_order() -> None:
    x = draw(0, (2, 4, 3, 5), "channels last", torch.bfloat16)
    out = reference.group_norm_silu(x, 2, None, None)
    assert out.dtype == x.dtype
    assert out.stride() == x.stride()
